#include "prompt_syntax.hpp"

#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <limits>
#include <system_error>

#include <tgate/error.hpp>

#include "text.hpp"
#include "unicode.hpp"

namespace tgate {
namespace {

using Text = std::u32string_view;

constexpr double kLargestWeight = 100.0;

bool is_blank(char32_t c) { return c == U' ' || (c >= U'\t' && c <= U'\r'); }
bool is_digit(char32_t c) { return c >= U'0' && c <= U'9'; }
bool is_opening(char32_t c) { return c == U'(' || c == U'['; }
bool is_closing(char32_t c) { return c == U')' || c == U']'; }
bool is_sign(char32_t c) { return c == U'+' || c == U'-'; }
bool is_of_word(char32_t c) { return is_letter(c) || is_number(c) || c == U'_'; }
bool is_plain(char32_t c) {
  return c != U'\\' && c != U':' && c != U'|' && !is_opening(c) && !is_closing(c);
}

// The first place from `at` on whose character is not of the kind.
template <class Kind>
std::size_t skip(Text text, std::size_t at, Kind kind) {
  while (at < text.size() && kind(text[at])) ++at;
  return at;
}

// Whether a word of ASCII's small letters is there, in any case.
bool has_word(Text text, std::size_t at, std::string_view word) {
  if (text.size() - at < word.size()) return false;
  for (std::size_t i = 0; i < word.size(); ++i) {
    const char32_t c = text[at + i];
    const char32_t small = c >= U'A' && c <= U'Z' ? c - U'A' + U'a' : c;
    if (small != static_cast<char32_t>(word[i])) return false;
  }
  return true;
}

// A number between a colon and a bracket that closes.
struct Number {
  std::size_t begin;
  std::size_t end;
  std::size_t bracket;
};

std::size_t number_end(Text text, std::size_t at) {
  const auto of_number = [](char32_t c) { return c == U'.' || is_digit(c); };
  if (at < text.size() && is_sign(text[at])) ++at;
  std::size_t end = skip(text, at, of_number);
  if (end == at) {
    for (const char* word : {"infinity", "inf", "nan"}) {
      if (has_word(text, at, word)) return at + std::string_view(word).size();
    }
    return at;
  }
  if (end < text.size() && (text[end] == U'e' || text[end] == U'E')) {
    std::size_t exponent = end + 1;
    if (exponent < text.size() && is_sign(text[exponent])) ++exponent;
    if (const std::size_t after = skip(text, exponent, is_digit); after > exponent) end = after;
  }
  return end;
}

// What a colon at `at` begins, if it is a weight or prompt editing.
std::optional<Number> number_at(Text text, std::size_t at) {
  const std::size_t begin = skip(text, at + 1, is_blank);
  const std::size_t end = number_end(text, begin);
  const std::size_t bracket = skip(text, end, is_blank);
  if (end == begin || bracket == text.size() || !is_closing(text[bracket])) return std::nullopt;
  if (end == begin + 1 && is_sign(text[begin])) return std::nullopt;  // no more than a sign
  return Number{begin, end, bracket};
}

// `digits`, `digits.`, `digits.digits` or `.digits` after a sign; others are none.
std::optional<double> decimal(std::string_view number) {
  const bool negative = number[0] == '-';
  if (negative || number[0] == '+') number.remove_prefix(1);
  std::size_t digits = 0, points = 0;
  bool large = false;  // a digit before the point that is not 0
  for (const char c : number) {
    if (c != '.' && (c < '0' || c > '9')) return std::nullopt;
    if (c == '.') {
      ++points;
    } else {
      ++digits;
      large = large || (points == 0 && c != '0');
    }
  }
  if (digits == 0 || points > 1) return std::nullopt;
  double value = 0;
  const auto read = std::from_chars(number.data(), number.data() + number.size(), value);
  if (read.ec == std::errc::result_out_of_range) {
    value = large ? std::numeric_limits<double>::infinity() : 0.0;
  }
  return negative ? -value : value;
}

// As Python's `{:g}`.
std::string brief(double value) {
  if (std::isnan(value)) return "nan";
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%g", value);
  return text.data();
}

std::string first_characters(std::string_view text, std::size_t count) {
  return encode_utf8(decode_utf8(text).substr(0, count));
}

// Of a prompt in its order: text; the end of a chunk; the multiplier of a bracket that opens there,
// or the end of what the bracket that was opened last multiplies.
struct Part {
  enum class Kind { text, chunk_end, opens, closes };

  Kind kind;
  Text text = {};
  double times = 1.0;
};

struct Bracket {
  char32_t character;
  std::size_t position;
  std::size_t part;  // where among the parts it opens
};

class Reader {
 public:
  Reader(Text prompt, const std::string& field) : prompt_(prompt), field_(field) {}

  std::vector<Piece> pieces() {
    refuse_networks();
    for (std::size_t at = 0; at < prompt_.size();) at = read(at);
    if (!open_.empty()) refuse_bracket(open_.back().position, "is not closed");
    return multiplied();
  }

 private:
  [[noreturn]] void refuse(const std::string& message) const {
    throw Error(ErrorKind::request, field_ + ": " + message, field_);
  }

  [[noreturn]] void refuse(const std::string& found, std::size_t position, const char* what,
                           const char* remedy = "leave it out") const {
    refuse(found + " at character " + std::to_string(position + 1) + ": " + what +
           " cannot be used here: " + remedy);
  }

  [[noreturn]] void refuse_bracket(std::size_t position, const std::string& why) const {
    const std::string character = encode_utf8(prompt_.substr(position, 1));
    refuse(quote(character) + " at character " + std::to_string(position + 1) + " " + why +
           ": write \\" + character + " for the character itself");
  }

  void refuse_networks() const {
    for (std::size_t at = prompt_.find(U'<'); at != Text::npos; at = prompt_.find(U'<', at + 1)) {
      for (const std::string_view name : {"lora:", "lyco:", "hypernet:"}) {
        if (has_word(prompt_, at + 1, name)) {
          refuse(encode_utf8(prompt_.substr(at, name.size() + 1)) +
                 "...> cannot be used here: leave it out");
        }
      }
    }
  }

  // Reads what is at a place; returns the place after it.
  std::size_t read(std::size_t at) {
    const char32_t c = prompt_[at];
    if (c == U'\\') {
      const bool escapes = at + 1 < prompt_.size() &&
                           (prompt_[at + 1] == U'\\' || is_opening(prompt_[at + 1]) ||
                            is_closing(prompt_[at + 1]));
      if (escapes) parts_.push_back({Part::Kind::text, prompt_.substr(at + 1, 1)});
      return at + 1 + escapes;
    }
    if (is_opening(c)) {
      open_.push_back({c, at, parts_.size()});
      parts_.push_back({Part::Kind::opens, {}, c == U'(' ? 1.1 : 1 / 1.1});
      return at + 1;
    }
    if (is_closing(c)) {
      close(at);
      parts_.push_back({Part::Kind::closes});
      return at + 1;
    }
    if (c == U':') {
      if (const auto number = number_at(prompt_, at)) {
        close_with(*number, at);
        return number->bracket + 1;
      }
    }
    if (c == U'|' && !open_.empty() && open_.back().character == U'[') {
      refuse("'|' in [...]", at, "alternation");
    }
    const std::size_t end = is_plain(c) ? skip(prompt_, at, is_plain) : at + 1;
    add_words(at, end);
    return end;
  }

  Bracket close(std::size_t at) {
    const char32_t opening = prompt_[at] == U')' ? U'(' : U'[';
    if (open_.empty() || open_.back().character != opening) {
      refuse_bracket(at, "closes no '" + encode_utf8(Text(&opening, 1)) + "'");
    }
    const Bracket bracket = open_.back();
    open_.pop_back();
    return bracket;
  }

  void close_with(const Number& number, std::size_t colon) {
    const Bracket bracket = close(number.bracket);
    const std::string text = encode_utf8(prompt_.substr(number.begin, number.end - number.begin));
    if (prompt_[number.bracket] == U']') {
      refuse("':" + text.substr(0, 40) + "]'", colon, "prompt editing");
    }
    const std::optional<double> weight = decimal(text);
    if (!weight || !(std::abs(*weight) <= kLargestWeight)) {
      refuse(first_characters(quote(text), 60) + " at character " +
             std::to_string(number.begin + 1) +
             " is no weight: write a number of -100 to 100, such as 1.3");
    }
    parts_[bracket.part].times = *weight;
    parts_.push_back({Part::Kind::closes});
  }

  // Splits text at `BREAK`; refuses `AND`.
  void add_words(std::size_t begin, std::size_t end) {
    const Text text = prompt_.substr(begin, end - begin);
    std::size_t first = 0;
    for (std::size_t at = 0; at < text.size();) {
      if (!is_of_word(text[at])) {
        ++at;
        continue;
      }
      const std::size_t after = skip(text, at, is_of_word);
      const Text word = text.substr(at, after - at);
      if (word == U"AND") refuse("AND", begin + at, "joined prompts", "write it small");
      if (word == U"BREAK") {
        parts_.push_back({Part::Kind::text, text.substr(first, at - first)});
        parts_.push_back({Part::Kind::chunk_end});
        first = after;
      }
      at = after;
    }
    parts_.push_back({Part::Kind::text, text.substr(first)});
  }

  // Multiplies the brackets' multipliers, the outermost first, and joins what has one weight.
  std::vector<Piece> multiplied() const {
    std::vector<double> weights{1.0};
    std::vector<Piece> pieces;
    for (const Part& part : parts_) {
      switch (part.kind) {
        case Part::Kind::opens: weights.push_back(weights.back() * part.times); break;
        case Part::Kind::closes: weights.pop_back(); break;
        case Part::Kind::chunk_end: pieces.emplace_back(); break;
        default: {
          if (part.text.empty()) break;
          const double weight = weights.back();
          const std::string text = encode_utf8(part.text);
          if (!(std::abs(weight) <= kLargestWeight)) {
            refuse(first_characters(quote(text), 60) + " has the weight " + brief(weight) +
                   ": use fewer brackets, 100 is the most");
          }
          if (!pieces.empty() && pieces.back().text && pieces.back().weight == weight) {
            *pieces.back().text += text;
          } else {
            pieces.push_back({text, weight});
          }
        }
      }
    }
    if (pieces.empty()) pieces.push_back({"", 1.0});
    return pieces;
  }

  Text prompt_;
  const std::string& field_;
  std::vector<Part> parts_;
  std::vector<Bracket> open_;
};

}  // namespace

std::vector<Piece> read_a1111(std::string_view prompt, const std::string& field) {
  const std::u32string text = decode_utf8(prompt);
  return Reader(text, field).pieces();
}

}  // namespace tgate
