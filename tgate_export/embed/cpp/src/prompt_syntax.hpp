// Prompts as A1111's web UI reads them: to pieces of text with weights. `(word)` counts 1.1 times,
// `[word]` 1 / 1.1 times, `(word:1.3)` 1.3 times; `BREAK` begins a chunk of tokens.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tgate {

// Text that has one weight; or, without text, where a chunk of tokens ends.
struct Piece {
  std::optional<std::string> text;
  double weight = 1.0;
};

// Reads valid UTF-8; neighbours of the same weight are one piece. `field` is the argument that an
// error names. Throws Error, kind `request`, with the place in the text, counted in characters from
// 1: brackets that do not match, weights that are none or too large, and what A1111 takes for more
// than weights and chunks.
std::vector<Piece> read_a1111(std::string_view prompt, const std::string& field);

}  // namespace tgate
