#include <tgate/error.hpp>

#include "python_text.hpp"

namespace tgate {

std::string Error::printable(const std::string& message) {
  std::string line = message;
  for (char& c : line) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  return escaped(line);
}

}  // namespace tgate
