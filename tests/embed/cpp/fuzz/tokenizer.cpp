// Any bytes as a prompt are encoded, and any bytes as a tokenizer file are read or refused: the
// first line of the input is the prompt, the rest replaces a part of a good file.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include <tgate/error.hpp>

#include "tokenizer.hpp"

namespace {

constexpr const char* kNormalizer = R"({"type":"Sequence","normalizers":[{"type":"NFC"},
  {"type":"Replace","pattern":{"Regex":"\\s+"},"content":" "},{"type":"Lowercase"}]})";
constexpr const char* kPreTokenizer = R"({"type":"Sequence","pretokenizers":[{"type":"Split",
  "pattern":{"Regex":"<\\|startoftext\\|>|<\\|endoftext\\|>|'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+"},
  "behavior":"Removed","invert":true},
  {"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}]})";
constexpr const char* kModel = R"({"type":"BPE","unk_token":"<u>","end_of_word_suffix":"</w>",
  "vocab":{"<u>":0,"a":1,"b":2,"a</w>":3,"b</w>":4,"ab":5,"ab</w>":6,"aab</w>":7},
  "merges":[["a","b"],["a","b</w>"],["a","ab</w>"]]})";

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const auto end = std::min(input.find('\n'), input.size());
  const std::string_view prompt = input.substr(0, end);
  const std::string_view model = input.substr(std::min(end + 1, input.size()));
  const std::string file = std::string(R"({"normalizer":)") + kNormalizer +
                           R"(,"pre_tokenizer":)" + kPreTokenizer +
                           R"(,"post_processor":{"type":"RobertaProcessing","cls":["x",8],"sep":["y",9]},)"
                           R"("added_tokens":[{"id":9,"content":"<|endoftext|>","special":true,
                             "single_word":false,"lstrip":false,"rstrip":false,"normalized":true}],)"
                           R"("model":)" +
                           (model.empty() ? kModel : std::string(model)) + "}";
  try {
    const tgate::Tokenizer tokenizer(file, "tokenizer.json");
    tokenizer.decode(tokenizer.encode(prompt));
  } catch (const tgate::Error&) {
  }
  return 0;
}
