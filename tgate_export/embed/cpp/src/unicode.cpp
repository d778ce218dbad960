#include "unicode.hpp"

#include <limits>
#include <memory>
#include <new>

#include <unicode/normalizer2.h>
#include <unicode/uchar.h>
#include <unicode/uniset.h>
#include <unicode/utf8.h>

#pragma GCC diagnostic ignored "-Wconversion"  // ICU's macros

namespace tgate {
namespace {

void check(UErrorCode status) {
  if (U_FAILURE(status)) throw std::bad_alloc();
}

// `tokenizers` normalizes with the tables of Unicode 9: later characters do not combine.
class Unicode9Nfc {
 public:
  Unicode9Nfc() {
    UErrorCode status = U_ZERO_ERROR;
    known_ = std::make_unique<icu::UnicodeSet>(u"[:age=9.0:]", status);
    check(status);
    known_->freeze();
    const icu::Normalizer2* nfc = icu::Normalizer2::getNFCInstance(status);
    check(status);
    normalizer_ = std::make_unique<icu::FilteredNormalizer2>(*nfc, *known_);
  }

  icu::UnicodeString operator()(const icu::UnicodeString& text) const {
    UErrorCode status = U_ZERO_ERROR;
    const icu::Normalizer2& normalizer = *normalizer_;
    icu::UnicodeString result = normalizer.normalize(text, status);
    check(status);
    return result;
  }

 private:
  std::unique_ptr<icu::UnicodeSet> known_;
  std::unique_ptr<icu::FilteredNormalizer2> normalizer_;
};

bool in_category(char32_t c, std::uint32_t mask) {
  return (U_GET_GC_MASK(static_cast<UChar32>(c)) & mask) != 0;
}

}  // namespace

bool is_utf8(std::string_view text) {
  // ICU counts in 32 bits.
  if (text.size() > std::numeric_limits<std::int32_t>::max()) return false;
  for (std::int32_t i = 0; i < static_cast<std::int32_t>(text.size());) {
    UChar32 c;
    U8_NEXT(text.data(), i, static_cast<std::int32_t>(text.size()), c);
    if (c < 0) return false;
  }
  return true;
}

std::u32string decode_utf8(std::string_view text) {
  std::u32string out;
  out.reserve(text.size());
  for (std::int32_t i = 0; i < static_cast<std::int32_t>(text.size());) {
    UChar32 c;
    U8_NEXT_OR_FFFD(text.data(), i, static_cast<std::int32_t>(text.size()), c);
    out += static_cast<char32_t>(c);
  }
  return out;
}

void append_utf8(std::string& out, char32_t c) {
  const auto append = [&](char32_t byte) { out += static_cast<char>(byte); };
  const auto append_low_bits = [&](int shift) { append(0x80 | ((c >> shift) & 0x3f)); };
  if (c < 0x80) {
    append(c);
  } else if (c < 0x800) {
    append(0xc0 | (c >> 6));
    append_low_bits(0);
  } else if (c < 0x10000) {
    append(0xe0 | (c >> 12));
    append_low_bits(6);
    append_low_bits(0);
  } else {
    append(0xf0 | (c >> 18));
    append_low_bits(12);
    append_low_bits(6);
    append_low_bits(0);
  }
}

std::string encode_utf8(std::u32string_view text) {
  std::string out;
  for (const char32_t c : text) append_utf8(out, c);
  return out;
}

std::u32string normalize_nfc(std::string_view text) {
  static const Unicode9Nfc nfc;
  const icu::UnicodeString normal =
      nfc(icu::UnicodeString::fromUTF8({text.data(), static_cast<std::int32_t>(text.size())}));
  std::u32string out;
  for (std::int32_t i = 0; i < normal.length(); i = normal.moveIndex32(i, 1)) {
    out += static_cast<char32_t>(normal.char32At(i));
  }
  return out;
}

void append_lowercase(std::u32string& out, char32_t c) {
  // The only letter whose lowercase is two.
  if (c == U'\u0130') {
    out += U"i\u0307";
  } else {
    out += static_cast<char32_t>(u_tolower(static_cast<UChar32>(c)));
  }
}

bool is_space(char32_t c) { return u_isUWhiteSpace(static_cast<UChar32>(c)); }

bool is_letter(char32_t c) { return in_category(c, U_GC_L_MASK); }

bool is_number(char32_t c) { return in_category(c, U_GC_N_MASK); }

bool is_printable(char32_t c) { return c == U' ' || !in_category(c, U_GC_C_MASK | U_GC_Z_MASK); }

}  // namespace tgate
