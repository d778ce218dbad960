// Any text is read as weights and chunks, or refused: the first byte of the input says how many
// chunks there are, and of how many tokens.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include <tgate/error.hpp>

#include "prompt_chunks.hpp"
#include "prompt_syntax.hpp"
#include "tokenizer.hpp"
#include "tokenizer_file.hpp"
#include "unicode.hpp"

namespace {

// A textual inversion of three vectors.
std::string inversion() {
  std::string added;
  const char* contents[] = {"<a>", "<a>_1", "<a>_2"};
  for (int vector = 0; vector < 3; ++vector) {
    added += std::string(R"(,{"content":")") + contents[vector] +
             R"(","id":)" + std::to_string(11 + vector) +
             R"(,"special":false,"single_word":false,"lstrip":false,"rstrip":false,"normalized":true})";
  }
  return added;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const tgate::Tokenizer tokenizer(tokenizer_file("", inversion()), "tokenizer.json");
  if (size == 0) return 0;
  const std::size_t most = 1 + data[0] % 4, room = 1 + data[0] / 4;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (!tgate::is_utf8(text)) return 0;  // refused before
  try {
    const auto pieces = tgate::read_a1111(text, "prompt");
    for (const tgate::Piece& piece : pieces) {
      if (!(std::abs(piece.weight) <= 100)) std::abort();
    }
    const auto found = tgate::split_chunks(tokenizer, pieces, room, most);
    if (found.chunks.empty() || found.chunks.size() > most) std::abort();
    for (const tgate::Chunk& chunk : found.chunks) {
      if (chunk.ids.size() > room || chunk.ids.size() != chunk.weights.size()) std::abort();
    }
  } catch (const tgate::Error&) {
  }
  return 0;
}
