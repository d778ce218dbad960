// Values as the Python runtime writes them, so that both say the same.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tgate {

std::string repr(std::string_view text);               // 'text', quoted and escaped
std::string escaped(std::string_view text);            // what cannot be printed, as repr has it
std::string repr(double value);                        // shortest decimals: 7.5, 1.0, 1e+20, nan
std::string repr(const std::vector<std::int64_t>& v);  // [1, 4, 8, 8]
std::string join(const std::vector<std::string>& parts, std::string_view separator = ", ");
std::string shell_join(const std::vector<std::string>& words);  // as shlex.join
std::string one_line(std::string_view text);                    // the first that is not empty, escaped

}  // namespace tgate
