#include <tgate/error.hpp>

#include "text.hpp"

namespace tgate {

const char* name_of(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::bundle: return "bundle";
    case ErrorKind::request: return "request";
    case ErrorKind::backend: return "backend";
    case ErrorKind::file: return "file";
    default: return "cancelled";
  }
}

std::string Error::printable(const std::string& message) {
  std::string line = message;
  for (char& c : line) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  return escaped(line);
}

}  // namespace tgate
