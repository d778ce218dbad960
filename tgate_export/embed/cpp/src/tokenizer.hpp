// Prompts to token ids: CLIP's byte-pair tokenizer from a `tokenizer.json` of Hugging Face
// `tokenizers`, with the same ids as that library.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include <nlohmann/json_fwd.hpp>

namespace tgate {

class Tokenizer {
 public:
  // Reads the text of a `tokenizer.json`; `where` is what errors call it. Throws Error: not a
  // tokenizer file (kind bundle), or one of another kind than CLIP's (kind request).
  Tokenizer(std::string_view json, const std::string& where);

  // Token ids of valid UTF-8, the start and the end token included. A token of a textual inversion
  // of several vectors becomes as many, where the text has it as it is in the vocabulary: its first
  // `most` occurrences.
  std::vector<std::int64_t> encode(std::string_view text, std::size_t most = 77) const;

  // Ids of a text without the start and the end, those together that belong together: the vectors
  // of one textual inversion. `most`: tokens that can be of use.
  std::vector<std::vector<std::int64_t>> groups(std::string_view text, std::size_t most) const;

  // Text of ids without the special tokens; what is not UTF-8 becomes U+FFFD.
  std::string decode(const std::vector<std::int64_t>& ids) const;
  std::string text(const std::vector<std::int64_t>& ids) const;  // as somebody would write it

  std::int64_t start() const { return start_; }                 // that every text begins with
  std::optional<std::int64_t> comma() const { return comma_; }  // at the end of a word

 private:
  struct AddedToken {
    std::string content;
    std::int64_t id;
    bool special;
  };
  struct Merge {
    std::size_t rank;
    std::int64_t id;
  };
  struct PairHash {
    std::size_t operator()(const std::pair<std::int64_t, std::int64_t>& pair) const;
  };

  void read_added_tokens(const nlohmann::json& json);
  void find_vectors(const nlohmann::json& added_tokens);
  void find_comma(const nlohmann::json& added_tokens);
  void read_model(const nlohmann::json& json);
  void read_post_processor(const nlohmann::json& json);
  std::vector<std::int64_t> encode_as_it_is(std::string_view text) const;
  void encode_normalized(std::u32string_view text, std::vector<std::int64_t>& ids) const;
  void encode_word(std::u32string_view word, std::vector<std::int64_t>& ids) const;

  std::unordered_map<std::string, std::int64_t> vocabulary_;
  std::unordered_map<std::int64_t, std::string> tokens_;
  std::unordered_map<std::pair<std::int64_t, std::int64_t>, Merge, PairHash> merges_;
  std::vector<AddedToken> raw_tokens_;         // found before the text is normalized
  std::vector<AddedToken> normalized_tokens_;  // and after
  // Of a textual inversion of several vectors: the token, and all of them, by the token's id.
  std::unordered_map<std::int64_t, std::pair<std::string, std::string>> vectors_;
  std::string suffix_;                         // of the last symbol of a word
  std::int64_t unknown_ = -1;
  std::int64_t start_ = 0;
  std::int64_t end_ = 0;
  std::optional<std::int64_t> comma_;
};

}  // namespace tgate
