// The little of Unicode that prompts need, through ICU.
#pragma once

#include <string>
#include <string_view>

namespace tgate {

bool is_utf8(std::string_view text);
std::u32string decode_utf8(std::string_view text);  // what is not UTF-8 becomes U+FFFD
void append_utf8(std::string& out, char32_t c);
std::string encode_utf8(std::u32string_view text);

std::u32string normalize_nfc(std::string_view text);  // as `tokenizers` does
void append_lowercase(std::u32string& out, char32_t c);

bool is_space(char32_t c);      // White_Space
bool is_letter(char32_t c);     // L*
bool is_number(char32_t c);     // N*
bool is_printable(char32_t c);  // as Python's str.isprintable

}  // namespace tgate
