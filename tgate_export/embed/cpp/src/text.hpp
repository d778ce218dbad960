// How errors write names, numbers and commands.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tgate {

std::string quote(std::string_view text);    // 'text', with escapes for what cannot be printed
std::string escaped(std::string_view text);  // the same without quotes
std::string number_text(double value);       // the shortest decimals that read back: 7.5, 1.0, nan
std::string shape_text(const std::vector<std::int64_t>& shape);  // [1, 4, 8, 8]
std::string join(const std::vector<std::string>& parts, std::string_view separator = ", ");
std::string shell_join(const std::vector<std::string>& words);  // for a POSIX shell
std::string stripped(std::string_view text);  // without white space at its ends, as Python's strip
std::string one_line(std::string_view text);  // the first that is not empty, escaped

}  // namespace tgate
