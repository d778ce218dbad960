// The one exception that the library throws.
#pragma once

#include <stdexcept>
#include <string>

namespace tgate {

enum class ErrorKind {
  bundle,     // missing, damaged, foreign, or of a newer version
  request,    // an argument out of range; the message names it
  backend,    // cannot be used here, or failed
  job,        // a file cannot be written
  cancelled,  // the step callback ended the run
};

// `what()` is one line that says what to do, with the words of the Python runtime.
class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message)
      : std::runtime_error(printable(message)), kind_(kind) {}

  ErrorKind kind() const noexcept { return kind_; }

  // What a command line exits with: 2 for wrong usage, 130 when interrupted, 1 otherwise.
  int exit_code() const noexcept {
    if (kind_ == ErrorKind::request) return 2;
    return kind_ == ErrorKind::cancelled ? 130 : 1;
  }

 private:
  // Line ends as spaces, and what cannot be printed as escapes: a bundle of somebody else can bring
  // codes that a terminal obeys.
  static std::string printable(const std::string& message);

  ErrorKind kind_;
};

}  // namespace tgate
