#include "prompt_chunks.hpp"

#include <algorithm>
#include <optional>

#include <tgate/error.hpp>

#include "text.hpp"

namespace tgate {
namespace {

using Ids = std::vector<std::int64_t>;

// A chunk that ends in the middle of a phrase ends after its last comma instead, if that is one of
// so many last tokens.
constexpr std::size_t kCommaWithin = 20;

// Chunks that are being filled.
class Filler {
 public:
  Filler(const Tokenizer& tokenizer, std::size_t room, std::size_t most)
      : tokenizer_(tokenizer), room_(room), most_(most) {}

  bool full() const { return done_.size() == most_; }
  const Ids& open_ids() const { return chunk_.ids; }

  void end_chunk() {
    if (full()) return;
    done_.push_back(std::move(chunk_));
    chunk_ = {};
    comma_.reset();
  }

  // Notes a comma, or ends the chunk after its last one where this group would find no room.
  void begin_group(const Ids& group) {
    if (tokenizer_.comma() && group == Ids{*tokenizer_.comma()}) {
      comma_ = chunk_.ids.size();
    } else if (chunk_.ids.size() == room_ && comma_ && room_ - *comma_ <= kCommaWithin) {
      Chunk rest = split(*comma_ + 1);
      end_chunk();
      chunk_ = std::move(rest);
    }
  }

  // Adds tokens that belong together. Returns whether there is room in one of the chunks.
  bool add(const Ids& part, double weight) {
    if (chunk_.ids.size() + part.size() > room_) end_chunk();
    if (full()) return false;
    chunk_.ids.insert(chunk_.ids.end(), part.begin(), part.end());
    chunk_.weights.insert(chunk_.weights.end(), part.size(), weight);
    return true;
  }

  std::vector<Chunk> take() {
    if (!chunk_.ids.empty() || done_.empty()) end_chunk();
    return std::move(done_);
  }

 private:
  Chunk split(std::size_t length) {
    const auto at = static_cast<std::ptrdiff_t>(length);
    Chunk rest{{chunk_.ids.begin() + at, chunk_.ids.end()},
               {chunk_.weights.begin() + at, chunk_.weights.end()}};
    chunk_.ids.resize(length);
    chunk_.weights.resize(length);
    return rest;
  }

  const Tokenizer& tokenizer_;
  std::size_t room_;
  std::size_t most_;
  std::vector<Chunk> done_;
  Chunk chunk_;
  std::optional<std::size_t> comma_;  // where the chunk has its last one
};

// What a group is added in: one that no chunk has room for is as many as it has tokens.
std::vector<Ids> parts_of(const Ids& group, std::size_t room) {
  if (group.size() <= room) return {group};
  std::vector<Ids> parts;
  for (const std::int64_t id : group) parts.push_back({id});
  return parts;
}

std::string left_out(const Tokenizer& tokenizer, const Ids& open,
                     const std::vector<Ids>& groups, std::size_t group,
                     const std::vector<Piece>& pieces, std::size_t piece) {
  Ids left = open;
  for (; group < groups.size(); ++group) {
    left.insert(left.end(), groups[group].begin(), groups[group].end());
  }
  std::string text = tokenizer.text(left) + " ";
  for (++piece; piece < pieces.size(); ++piece) {
    const auto& more = pieces[piece].text;
    text += more && !more->empty() ? *more : " ";
  }
  return stripped(text);
}

}  // namespace

Chunks split_chunks(const Tokenizer& tokenizer, const std::vector<Piece>& pieces, std::size_t room,
                    std::size_t most) {
  Filler filler(tokenizer, room, most);
  for (std::size_t piece = 0; piece < pieces.size(); ++piece) {
    if (!pieces[piece].text) {
      filler.end_chunk();
      continue;
    }
    const std::vector<Ids> groups = tokenizer.groups(*pieces[piece].text, most * (room + 2));
    for (std::size_t group = 0; group < groups.size(); ++group) {
      filler.begin_group(groups[group]);
      for (const Ids& part : parts_of(groups[group], room)) {
        if (filler.add(part, pieces[piece].weight)) continue;
        std::string left =
            left_out(tokenizer, filler.open_ids(), groups, group, pieces, piece);
        return {filler.take(), std::move(left)};
      }
    }
  }
  return {filler.take(), ""};
}

std::int64_t filled_up(std::int64_t chunks, std::int64_t most) {
  while (chunks < most && most % chunks != 0) ++chunks;
  return chunks;
}

std::vector<EncoderRun> encoder_runs(const Manifest& manifest, Tokenizers& tokenizers,
                                     const std::vector<Piece>& pieces,
                                     std::vector<std::string>& warnings) {
  const std::int64_t most = manifest.prompt_chunks();
  std::map<std::string, std::vector<Chunk>> found;
  std::size_t largest = 1;
  for (const auto& [name, spec] : manifest.tokenizers) {
    const auto room = static_cast<std::size_t>(spec.max_length) - 2;
    Chunks split =
        split_chunks(tokenizers.get(name), pieces, room, static_cast<std::size_t>(most));
    if (!split.left_out.empty()) {
      const std::string chunks =
          most == 1 ? "the chunk" : "the " + std::to_string(most) + " chunks";
      warnings.push_back("the prompt is longer than " + chunks + " of " + std::to_string(room) +
                         " tokens that this bundle was built for (prompt_chunks); this part was "
                         "left out: " + quote(split.left_out));
    }
    largest = std::max(largest, split.chunks.size());
    found[name] = std::move(split.chunks);
  }
  const auto number =
      static_cast<std::size_t>(filled_up(static_cast<std::int64_t>(largest), most));
  std::vector<EncoderRun> runs(number);
  for (std::size_t index = 0; index < number; ++index) {
    bool weighted = false;
    for (auto& [name, chunks] : found) {
      chunks.resize(number);
      const std::vector<double>& weights = chunks[index].weights;
      weighted = weighted || std::any_of(weights.begin(), weights.end(),
                                         [](double weight) { return weight != 1; });
    }
    for (const auto& [name, chunks] : found) {
      const TokenizerSpec& spec = *manifest.tokenizers.find(name);
      const Chunk& chunk = chunks[index];
      Ids& ids = runs[index].ids[name];
      ids.push_back(tokenizers.get(name).start());
      ids.insert(ids.end(), chunk.ids.begin(), chunk.ids.end());
      ids.push_back(spec.eos_token_id);
      if (!weighted) continue;
      std::vector<double>& weights = runs[index].weights[name];
      weights.assign(static_cast<std::size_t>(spec.max_length), 1.0);
      std::copy(chunk.weights.begin(), chunk.weights.end(), weights.begin() + 1);
    }
  }
  return runs;
}

void apply_weights(const Manifest& manifest, const EncoderRun& run, std::int64_t width,
                   std::vector<double>& tokens) {
  const auto row = static_cast<std::size_t>(width);
  for (const auto& entry : run.weights) {
    const std::string& name = entry.first;
    const std::vector<double>& weights = entry.second;
    const auto& columns = manifest.tokenizers.find(name)->columns;
    if (!columns || (*columns)[1] > width || tokens.size() != row * weights.size()) {
      throw Error(ErrorKind::bundle, "the tokens of " + quote(name) +
                                         " are not those that the text encoder makes: build the "
                                         "bundle again");
    }
    const auto first = static_cast<std::size_t>((*columns)[0]);
    const auto end = static_cast<std::size_t>((*columns)[1]);
    const auto each = [&](auto visit) {
      for (std::size_t token = 0; token < weights.size(); ++token) {
        for (std::size_t column = first; column < end; ++column) {
          visit(tokens[token * row + column], weights[token]);
        }
      }
    };
    double before = 0, after = 0;  // sums, of as many numbers
    each([&](double& value, double weight) {
      before += value;
      after += value *= weight;
    });
    const double scale = after != 0 ? before / after : 1.0;
    each([&](double& value, double) { value *= scale; });
  }
}

}  // namespace tgate
