// Any bytes as a prompt are encoded, and any bytes as a tokenizer file are read or refused: the
// first line of the input is the prompt, the rest replaces a part of a good file.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include <tgate/error.hpp>

#include "tokenizer.hpp"
#include "tokenizer_file.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const auto end = std::min(input.find('\n'), input.size());
  const std::string_view prompt = input.substr(0, end);
  const std::string_view model = input.substr(std::min(end + 1, input.size()));
  try {
    const tgate::Tokenizer tokenizer(tokenizer_file(model), "tokenizer.json");
    tokenizer.decode(tokenizer.encode(prompt));
  } catch (const tgate::Error&) {
  }
  return 0;
}
