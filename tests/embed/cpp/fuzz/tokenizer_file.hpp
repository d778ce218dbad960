// The file of a small tokenizer of CLIP's kind.
#pragma once

#include <string>
#include <string_view>

namespace {

constexpr const char* kNormalizer = R"({"type":"Sequence","normalizers":[{"type":"NFC"},
  {"type":"Replace","pattern":{"Regex":"\\s+"},"content":" "},{"type":"Lowercase"}]})";
constexpr const char* kPreTokenizer = R"({"type":"Sequence","pretokenizers":[{"type":"Split",
  "pattern":{"Regex":"<\\|startoftext\\|>|<\\|endoftext\\|>|'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+"},
  "behavior":"Removed","invert":true},
  {"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}]})";
constexpr const char* kModel = R"({"type":"BPE","unk_token":"<u>","end_of_word_suffix":"</w>",
  "vocab":{"<u>":0,"a":1,"b":2,"a</w>":3,"b</w>":4,"ab":5,"ab</w>":6,"aab</w>":7,",</w>":10},
  "merges":[["a","b"],["a","b</w>"],["a","ab</w>"]]})";

// The file with a model of somebody else, if there is one, and with added tokens after the first.
std::string tokenizer_file(std::string_view model = "", const std::string& added = "") {
  return std::string(R"({"normalizer":)") + kNormalizer + R"(,"pre_tokenizer":)" + kPreTokenizer +
         R"(,"post_processor":{"type":"RobertaProcessing","cls":["x",8],"sep":["y",9]},)"
         R"("added_tokens":[{"id":9,"content":"<|endoftext|>","special":true,
           "single_word":false,"lstrip":false,"rstrip":false,"normalized":true})" +
         added + R"(],"model":)" + (model.empty() ? kModel : std::string(model)) + "}";
}

}  // namespace
