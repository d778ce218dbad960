// The one exception that the library throws.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace tgate {

enum class ErrorKind {
  bundle,     // missing, damaged, foreign, or of a newer version
  request,    // an argument out of range; the message names it
  backend,    // cannot be used here, or failed
  file,       // a file cannot be written
  cancelled,  // the step callback ended the run
};

const char* name_of(ErrorKind kind);  // bundle, request, backend, file or cancelled

// `what()` is one line that names the thing and says what to do.
class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message, std::string field = {})
      : std::runtime_error(printable(message)), kind_(kind), field_(std::move(field)) {}

  ErrorKind kind() const noexcept { return kind_; }

  // What is wrong: the name of a request's argument, such as guidance_scale, or the path of a
  // record's field, such as graphs.full.inputs.0.from, as it is written there; "" where it is
  // neither.
  const std::string& field() const noexcept { return field_; }

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
  std::string field_;
};

}  // namespace tgate
