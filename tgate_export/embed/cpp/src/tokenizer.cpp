#include "tokenizer.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <queue>
#include <unordered_set>

#include <tgate/error.hpp>

#include "json_reader.hpp"
#include "text.hpp"
#include "unicode.hpp"

namespace tgate {
namespace {

// What makes a tokenizer CLIP's: its text is normalized and split as the code below does.
constexpr const char* kNormalizer = R"({"type":"Sequence","normalizers":[{"type":"NFC"},
  {"type":"Replace","pattern":{"Regex":"\\s+"},"content":" "},{"type":"Lowercase"}]})";
constexpr const char* kPreTokenizer = R"({"type":"Sequence","pretokenizers":[{"type":"Split",
  "pattern":{"Regex":"<\\|startoftext\\|>|<\\|endoftext\\|>|'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+"},
  "behavior":"Removed","invert":true},
  {"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}]})";

[[noreturn]] void other_kind(const std::string& what) {
  throw Error(ErrorKind::request, "it has another " + what + " than CLIP's byte-pair tokenizer");
}

// More than any tokenizer has; `tokenizers` keeps an id in 32 bits.
constexpr std::int64_t kMostId = std::numeric_limits<std::int32_t>::max();
constexpr std::size_t kMostTokens = 1 << 20;
constexpr std::size_t kMostMerges = 1 << 20;
constexpr std::size_t kMostAddedTokens = 4096;  // each is looked for at every place of a text
constexpr std::size_t kMostTokenBytes = 1024;

std::int64_t id_of(const nlohmann::json& json) {
  if (!json.is_number_integer() || json < 0 || json > kMostId) {
    throw std::invalid_argument("a token's id is not a number from 0 to " +
                                std::to_string(kMostId));
  }
  return json.get<std::int64_t>();
}

void check_count(const nlohmann::json& json, std::size_t most, const char* what) {
  if (json.size() > most) {
    throw std::invalid_argument("it has more than " + std::to_string(most) + " " + what);
  }
}

const std::string& check_token(const std::string& token) {
  if (token.size() > kMostTokenBytes) {
    throw std::invalid_argument("a token has more than " + std::to_string(kMostTokenBytes) +
                                " bytes");
  }
  return token;
}

// Every byte as a printable character, as GPT-2's `bytes_to_unicode`.
const std::array<char32_t, 256>& byte_characters() {
  static const std::array<char32_t, 256> characters = [] {
    std::array<char32_t, 256> table{};
    char32_t next = 256;
    for (char32_t byte = 0; byte < 256; ++byte) {
      const bool itself = (byte >= U'!' && byte <= U'~') || (byte >= 0xa1 && byte <= 0xac) ||
                          byte >= 0xae;
      table[byte] = itself ? byte : next++;
    }
    return table;
  }();
  return characters;
}

std::u32string normalize(std::string_view text) {
  std::u32string out;
  bool space = false;
  for (const char32_t c : normalize_nfc(text)) {
    if (is_space(c)) {
      if (!space) out += U' ';
      space = true;
    } else {
      append_lowercase(out, c);
      space = false;
    }
  }
  return out;
}

bool starts_with(std::u32string_view text, std::u32string_view prefix) {
  return text.substr(0, prefix.size()) == prefix;
}

// The length of the first match of the split pattern where `text` begins; 0 for a space.
std::size_t word_length(std::u32string_view text) {
  for (const std::u32string_view ending : {U"'s", U"'t", U"'re", U"'ve", U"'m", U"'ll", U"'d"}) {
    if (starts_with(text, ending)) return ending.size();
  }
  const auto run = [&](auto belongs) {
    std::size_t length = 0;
    while (length < text.size() && belongs(text[length])) ++length;
    return length;
  };
  if (is_letter(text[0])) return run(is_letter);
  if (is_number(text[0])) return 1;
  return run([](char32_t c) { return !is_space(c) && !is_letter(c) && !is_number(c); });
}

// Calls `token` for the longest token at each place where there is one, and `rest` for the text
// in between.
template <class Tokens, class OnToken, class OnRest>
void split_at(std::string_view text, const Tokens& tokens, OnToken on_token, OnRest on_rest) {
  std::size_t begin = 0;
  for (std::size_t at = 0; at < text.size();) {
    const typename Tokens::value_type* longest = nullptr;
    for (const auto& token : tokens) {
      if (text.compare(at, token.content.size(), token.content) == 0 &&
          (longest == nullptr || token.content.size() > longest->content.size())) {
        longest = &token;
      }
    }
    if (longest == nullptr) {
      ++at;
      continue;
    }
    if (at > begin) on_rest(text.substr(begin, at - begin));
    on_token(*longest);
    begin = at += longest->content.size();
  }
  if (begin < text.size()) on_rest(text.substr(begin));
}

}  // namespace

std::size_t Tokenizer::PairHash::operator()(
    const std::pair<std::int64_t, std::int64_t>& pair) const {
  return std::hash<std::uint64_t>()(static_cast<std::uint64_t>(pair.first) * 1000003 +
                                    static_cast<std::uint64_t>(pair.second));
}

Tokenizer::Tokenizer(std::string_view text, const std::string& where) {
  try {
    const nlohmann::json json = parse_large_json(text);
    read_model(json.at("model"));
    if (json.at("normalizer") != nlohmann::json::parse(kNormalizer)) other_kind("normalizer");
    if (json.at("pre_tokenizer") != nlohmann::json::parse(kPreTokenizer)) other_kind("pre-tokenizer");
    read_added_tokens(json.at("added_tokens"));
    find_vectors(json.at("added_tokens"));
    find_comma(json.at("added_tokens"));
    read_post_processor(json.at("post_processor"));
  } catch (const std::invalid_argument& error) {
    throw Error(ErrorKind::bundle, where + " is not a tokenizer file: " + error.what());
  } catch (const nlohmann::json::exception& error) {
    throw Error(ErrorKind::bundle, where + " is not a tokenizer file: " + one_line(error.what()));
  } catch (const Error& error) {
    throw Error(error.kind(), where + " cannot be used here: " + error.what() +
                                  "; give token ids or embeddings instead of text");
  }
}

void Tokenizer::read_model(const nlohmann::json& json) {
  const auto off = [&](const char* name, const nlohmann::json& value) {
    return !json.contains(name) || json[name].is_null() || json[name] == value;
  };
  if (json.at("type") != "BPE" || !off("dropout", 0.0) || !off("continuing_subword_prefix", "") ||
      !off("fuse_unk", false) || !off("byte_fallback", false) || !off("ignore_merges", false)) {
    other_kind("model");
  }
  const nlohmann::json& vocabulary = json.at("vocab");
  if (!vocabulary.is_object()) throw std::invalid_argument("its vocabulary is not an object");
  check_count(vocabulary, kMostTokens, "tokens");
  for (const auto& [token, id] : vocabulary.items()) {
    vocabulary_.emplace(check_token(token), id_of(id));
    if (!tokens_.emplace(id_of(id), token).second) {
      throw std::invalid_argument("two tokens have the id " + id.dump());
    }
  }
  const auto known = [&](const std::string& token) {
    const auto found = vocabulary_.find(token);
    if (found == vocabulary_.end()) {
      throw std::invalid_argument("token " + quote(token) + " is not in the vocabulary");
    }
    return found->second;
  };
  if (json.contains("end_of_word_suffix") && !json["end_of_word_suffix"].is_null()) {
    suffix_ = check_token(json["end_of_word_suffix"].get<std::string>());
  }
  if (json.contains("unk_token") && !json["unk_token"].is_null()) {
    unknown_ = known(json["unk_token"].get<std::string>());
  }
  check_count(json.at("merges"), kMostMerges, "merges");
  std::size_t rank = 0;
  for (const nlohmann::json& merge : json.at("merges")) {
    std::string left, right;  // both in the vocabulary, as is what they become
    if (merge.is_string()) {  // as files before tokenizers 0.20 have it
      const auto& both = merge.get_ref<const std::string&>();
      const auto space = both.find(' ');
      left = both.substr(0, space);
      right = space == std::string::npos ? "" : both.substr(space + 1);
    } else {
      left = merge.at(0).get<std::string>();
      right = merge.at(1).get<std::string>();
    }
    merges_.insert_or_assign({known(left), known(right)}, Merge{rank++, known(left + right)});
  }
}

void Tokenizer::read_added_tokens(const nlohmann::json& json) {
  check_count(json, kMostAddedTokens, "added tokens");
  for (const nlohmann::json& entry : json) {
    for (const char* option : {"single_word", "lstrip", "rstrip"}) {
      if (entry.at(option).get<bool>()) other_kind("kind of added token");
    }
    AddedToken token{check_token(entry.at("content").get<std::string>()), id_of(entry.at("id")),
                     entry.at("special").get<bool>()};
    if (token.content.empty()) continue;
    tokens_.insert_or_assign(token.id, token.content);
    if (entry.at("normalized").get<bool>()) {
      token.content = encode_utf8(normalize(token.content));
      normalized_tokens_.push_back(std::move(token));
    } else {
      raw_tokens_.push_back(std::move(token));
    }
  }
}

void Tokenizer::find_vectors(const nlohmann::json& added_tokens) {
  std::unordered_map<std::string, std::int64_t> added;
  for (const nlohmann::json& entry : added_tokens) {
    added.insert_or_assign(entry.at("content").get<std::string>(),
                           entry.at("id").get<std::int64_t>());
  }
  for (const auto& [token, id] : added) {
    std::string all = token;
    for (int vector = 1;; ++vector) {
      const std::string following = token + "_" + std::to_string(vector);
      if (token.empty() || added.count(following) == 0) break;
      all += " " + following;
    }
    if (all != token) vectors_.emplace(id, std::make_pair(token, std::move(all)));
  }
}

void Tokenizer::find_comma(const nlohmann::json& added_tokens) {
  const std::string comma = ",</w>";
  if (const auto found = vocabulary_.find(comma); found != vocabulary_.end()) {
    comma_ = found->second;
  }
  for (const nlohmann::json& entry : added_tokens) {
    if (entry.at("content") == comma) comma_ = entry.at("id").get<std::int64_t>();
  }
}

void Tokenizer::read_post_processor(const nlohmann::json& json) {
  if (json.at("type") != "RobertaProcessing") other_kind("post-processor");
  start_ = id_of(json.at("cls").at(1));
  end_ = id_of(json.at("sep").at(1));
}

std::vector<std::int64_t> Tokenizer::encode(std::string_view text, std::size_t most) const {
  std::vector<std::int64_t> ids = encode_as_it_is(text);
  if (vectors_.empty()) return ids;
  std::string longer(text);
  std::unordered_set<std::int64_t> seen;
  for (const std::int64_t id : ids) {
    const auto found = vectors_.find(id);
    if (found == vectors_.end() || !seen.insert(id).second) continue;
    const auto& [token, all] = found->second;
    std::size_t at = 0;
    for (std::size_t times = 0; times < most; ++times, at += all.size()) {
      if ((at = longer.find(token, at)) == std::string::npos) break;
      longer.replace(at, token.size(), all);
    }
  }
  return seen.empty() ? ids : encode_as_it_is(longer);
}

std::vector<std::vector<std::int64_t>> Tokenizer::groups(std::string_view text,
                                                         std::size_t most) const {
  std::vector<std::int64_t> ids = encode(text, most);
  ids.pop_back();
  std::unordered_map<std::int64_t, std::vector<std::int64_t>> wholes;
  std::vector<std::vector<std::int64_t>> found;
  for (std::size_t first = 1; first < ids.size();) {
    std::size_t length = 1;
    if (const auto vectors = vectors_.find(ids[first]); vectors != vectors_.end()) {
      auto& whole = wholes[ids[first]];
      if (whole.empty()) {
        whole = encode_as_it_is(vectors->second.second);
        whole.erase(whole.begin());
        whole.pop_back();
      }
      const bool fits = whole.size() <= ids.size() - first &&
                        std::equal(whole.begin(), whole.end(),
                                   ids.begin() + static_cast<std::ptrdiff_t>(first));
      if (fits) length = std::max<std::size_t>(whole.size(), 1);
    }
    const auto begin = ids.begin() + static_cast<std::ptrdiff_t>(first);
    found.emplace_back(begin, begin + static_cast<std::ptrdiff_t>(length));
    first += length;
  }
  return found;
}

std::vector<std::int64_t> Tokenizer::encode_as_it_is(std::string_view text) const {
  std::vector<std::int64_t> ids{start_};
  split_at(
      text, raw_tokens_, [&](const AddedToken& token) { ids.push_back(token.id); },
      [&](std::string_view rest) {
        // Normalized as a whole between two tokens, and searched for tokens again.
        split_at(
            encode_utf8(normalize(rest)), normalized_tokens_,
            [&](const AddedToken& token) { ids.push_back(token.id); },
            [&](std::string_view plain) { encode_normalized(decode_utf8(plain), ids); });
      });
  ids.push_back(end_);
  return ids;
}

void Tokenizer::encode_normalized(std::u32string_view text, std::vector<std::int64_t>& ids) const {
  while (!text.empty()) {
    bool named = false;
    // The pattern keeps these whole, and the second pattern, GPT-2's, divides them again.
    for (const std::u32string_view token : {U"<|startoftext|>", U"<|endoftext|>"}) {
      if (starts_with(text, token)) {
        encode_word(token.substr(0, 2), ids);
        encode_word(token.substr(2, token.size() - 4), ids);
        encode_word(token.substr(token.size() - 2), ids);
        text.remove_prefix(token.size());
        named = true;
        break;
      }
    }
    if (named) continue;
    const std::size_t length = word_length(text);
    if (length) encode_word(text.substr(0, length), ids);
    text.remove_prefix(length ? length : 1);
  }
}

void Tokenizer::encode_word(std::u32string_view word, std::vector<std::int64_t>& ids) const {
  struct Symbol {
    std::int64_t id;
    std::ptrdiff_t previous;
    std::ptrdiff_t next;  // -1 at the end
    bool alive;
  };
  struct Candidate {
    std::size_t rank;
    std::ptrdiff_t at;
    std::int64_t id;
    // Of equal rank, the leftmost goes first.
    bool operator<(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : at > other.at;
    }
  };
  std::vector<Symbol> symbols;
  const std::string bytes = encode_utf8(word);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    std::string symbol;
    append_utf8(symbol, byte_characters()[static_cast<unsigned char>(bytes[i])]);
    if (i + 1 == bytes.size()) symbol += suffix_;
    const auto found = vocabulary_.find(symbol);
    if (found == vocabulary_.end() && unknown_ < 0) continue;
    const auto at = static_cast<std::ptrdiff_t>(symbols.size());
    symbols.push_back({found == vocabulary_.end() ? unknown_ : found->second, at - 1, at + 1, true});
  }
  if (symbols.empty()) return;
  symbols.back().next = -1;

  const auto symbol_at = [&](std::ptrdiff_t i) -> Symbol& {
    return symbols[static_cast<std::size_t>(i)];
  };
  std::priority_queue<Candidate> queue;
  const auto merge_of = [&](std::ptrdiff_t at) -> const Merge* {
    if (at < 0 || symbol_at(at).next < 0) return nullptr;
    const auto found = merges_.find({symbol_at(at).id, symbol_at(symbol_at(at).next).id});
    return found == merges_.end() ? nullptr : &found->second;
  };
  const auto propose = [&](std::ptrdiff_t at) {
    if (const Merge* merge = merge_of(at)) queue.push({merge->rank, at, merge->id});
  };
  for (std::size_t i = 0; i < symbols.size(); ++i) propose(static_cast<std::ptrdiff_t>(i));
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbol_at(best.at);
    const Merge* merge = left.alive ? merge_of(best.at) : nullptr;
    if (merge == nullptr || merge->id != best.id) continue;  // merged with another since
    Symbol& right = symbol_at(left.next);
    right.alive = false;
    left.id = best.id;
    left.next = right.next;
    if (left.next >= 0) symbol_at(left.next).previous = best.at;
    propose(left.previous);
    propose(best.at);
  }
  for (const Symbol& symbol : symbols) {
    if (symbol.alive) ids.push_back(symbol.id);
  }
}

std::string Tokenizer::decode(const std::vector<std::int64_t>& ids) const {
  static const std::unordered_map<char32_t, char> bytes = [] {
    std::unordered_map<char32_t, char> table;
    for (std::size_t byte = 0; byte < 256; ++byte) {
      table.emplace(byte_characters()[byte], static_cast<char>(byte));
    }
    return table;
  }();
  const auto is_special = [&](std::int64_t id) {
    for (const auto* tokens : {&raw_tokens_, &normalized_tokens_}) {
      for (const AddedToken& token : *tokens) {
        if (token.id == id && token.special) return true;
      }
    }
    return false;
  };
  std::string text;
  for (const std::int64_t id : ids) {
    const auto token = tokens_.find(id);
    if (token == tokens_.end() || is_special(id)) continue;
    std::string decoded;
    for (const char32_t c : decode_utf8(token->second)) {
      const auto byte = bytes.find(c);
      if (byte == bytes.end()) {
        decoded = token->second;
        break;
      }
      decoded += byte->second;
    }
    text += decoded;
  }
  return encode_utf8(decode_utf8(text));
}

std::string Tokenizer::text(const std::vector<std::int64_t>& ids) const {
  constexpr std::string_view kEndOfWord = "</w>";
  const std::string decoded = decode(ids);
  std::string out;
  for (std::size_t at = 0; at < decoded.size();) {
    const std::size_t end = std::min(decoded.find(kEndOfWord, at), decoded.size());
    out.append(decoded, at, end - at);
    if (end < decoded.size()) out += ' ';
    at = end + kEndOfWord.size();
  }
  return stripped(out);
}

}  // namespace tgate
