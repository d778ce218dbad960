#include "text.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "unicode.hpp"

namespace tgate {

namespace {

void append_escaped(std::string& out, char32_t c) {
  if (c == U'\n') {
    out += "\\n";
  } else if (c == U'\r') {
    out += "\\r";
  } else if (c == U'\t') {
    out += "\\t";
  } else if (is_printable(c)) {
    append_utf8(out, c);
  } else {
    std::array<char, 12> code{};
    const char* form = c <= 0xff ? "\\x%02x" : c <= 0xffff ? "\\u%04x" : "\\U%08x";
    std::snprintf(code.data(), code.size(), form, static_cast<unsigned>(c));
    out += code.data();
  }
}

}  // namespace

std::string quote(std::string_view text) {
  std::string out = "'";
  for (const char32_t c : decode_utf8(text)) {
    if (c == U'\'' || c == U'\\') out += '\\';
    append_escaped(out, c);
  }
  return out + "'";
}

std::string escaped(std::string_view text) {
  std::string out;
  for (const char32_t c : decode_utf8(text)) append_escaped(out, c);
  return out;
}

std::string number_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  std::array<char, 32> buffer{};
  const auto written = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value);
  const std::string text(buffer.data(), written.ptr);
  return text.find_first_of(".e") == std::string::npos ? text + ".0" : text;
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::vector<std::string> parts;
  for (const std::int64_t side : shape) parts.push_back(std::to_string(side));
  return "[" + join(parts) + "]";
}

std::string join(const std::vector<std::string>& parts, std::string_view separator) {
  std::string out;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (i) out += separator;
    out += parts[i];
  }
  return out;
}

std::string shell_join(const std::vector<std::string>& words) {
  std::vector<std::string> quoted;
  for (const std::string& word : words) {
    const bool plain =
        !word.empty() && std::all_of(word.begin(), word.end(), [](unsigned char c) {
          return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                 std::string_view("_@%+=:,./-").find(static_cast<char>(c)) !=
                     std::string_view::npos;
        });
    if (plain) {
      quoted.push_back(word);
      continue;
    }
    std::string out = "'";
    for (const char c : word) {
      if (c == '\'') {
        out += "'\"'\"'";
      } else {
        out += c;
      }
    }
    quoted.push_back(out + "'");
  }
  return join(quoted, " ");
}

std::string stripped(std::string_view text) {
  const std::u32string decoded = decode_utf8(text);
  const auto is_blank = [](char32_t c) { return is_space(c) || (c >= 0x1c && c <= 0x1f); };
  const auto begin = std::find_if_not(decoded.begin(), decoded.end(), is_blank);
  const auto end = std::find_if_not(decoded.rbegin(), decoded.rend(), is_blank).base();
  return begin < end ? encode_utf8({&*begin, static_cast<std::size_t>(end - begin)}) : "";
}

std::string one_line(std::string_view text) {
  const auto begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return {};
  text.remove_prefix(begin);
  text = text.substr(0, text.find('\n'));
  while (!text.empty() && (text.back() == '\r' || text.back() == ' ')) text.remove_suffix(1);
  return escaped(text);
}

}  // namespace tgate
