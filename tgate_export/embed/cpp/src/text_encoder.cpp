#include "text_encoder.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include <tgate/error.hpp>

#include "counts.hpp"
#include "half.hpp"
#include "prompts.hpp"
#include "text.hpp"

namespace tgate {
namespace {

// A text as it is: one run, cut where it is too long.
EncoderRun plain_run(const Manifest& manifest, Tokenizers& tokenizers, const std::string& text,
                     std::vector<std::string>& warnings) {
  EncoderRun run;
  for (const auto& [name, spec] : manifest.tokenizers) {
    const Tokenizer& tokenizer = tokenizers.get(name);
    const auto length = static_cast<std::size_t>(spec.max_length);
    std::vector<std::int64_t> ids = tokenizer.encode(text, length);
    if (ids.size() > length) {
      warnings.push_back(
          "the prompt is longer than the " + std::to_string(length) +
          " tokens that the text encoder takes; this part was left out: " +
          quote(tokenizer.text({ids.begin() + static_cast<std::ptrdiff_t>(length) - 1,
                                ids.end() - 1})));
      ids.resize(length - 1);
      ids.push_back(spec.eos_token_id);
    }
    run.ids[name] = std::move(ids);
  }
  return run;
}

void append(Bytes& out, const Bytes& more) { out.insert(out.end(), more.begin(), more.end()); }

// Row `index` of as many as `batch`.
Bytes row_of(const Bytes& rows, std::size_t index, std::size_t batch) {
  const auto each = static_cast<std::ptrdiff_t>(rows.size() / batch);
  const auto begin = rows.begin() + each * static_cast<std::ptrdiff_t>(index);
  return {begin, begin + each};
}

// The embeddings of an image in a tensor's type.
Bytes given_row(const Tensor& value, std::size_t image, DType dtype) {
  const std::size_t each = value.data.size() / static_cast<std::size_t>(value.shape[0]);
  return converted(value.data.data() + each * image, each, dtype);
}

// A number as a float that rounds to the half that the number itself rounds to: towards zero, and
// with the last bit set where something is lost.
float towards_half(double number) {
  auto value = static_cast<float>(number);
  if (double(value) == number || !std::isfinite(number)) return value;
  if (std::abs(double(value)) > std::abs(number)) value = std::nextafter(value, 0.0F);
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits |= 1;
  std::memcpy(&value, &bits, sizeof bits);
  return value;
}

double number_at(const char* bytes, DType dtype) {
  const auto as = [&](auto value) {
    std::memcpy(&value, bytes, sizeof value);
    return value;
  };
  switch (dtype) {
    case DType::float32: return double(as(float{}));
    case DType::float16: return double(from_half(as(std::uint16_t{})));
    default: return static_cast<double>(as(std::int64_t{}));
  }
}

}  // namespace

TextEncoder::TextEncoder(const Manifest& manifest, const BindingPlan& plan, Memory& memory,
                         std::vector<Execute> launches, std::int64_t batch)
    : manifest_(manifest),
      plan_(plan),
      memory_(memory),
      launches_(std::move(launches)),
      batch_(batch),
      chunks_(manifest.chunks()) {}

Bytes TextEncoder::read(const Slot& slot) const {
  const auto found = plan_.buffers.find(slot.buffer);
  Bytes bytes(found == plan_.buffers.end() ? 0 : found->second.row_bytes());
  memory_.read(slot, bytes.data(), bytes.size());
  return bytes;
}

void TextEncoder::write(const Slot& slot, const Bytes& bytes) const {
  memory_.write(slot, bytes.data(), bytes.size());
}

std::vector<std::string> TextEncoder::prepare(Tokenizers& tokenizers, const Part& part) {
  std::vector<std::string> warnings;
  const Call& call = part.call;
  prepare(tokenizers, part, call.prompts, prompts_, warnings);
  if (call.negatives) {
    prepare(tokenizers, part, *call.negatives, negatives_, warnings);
  } else if (manifest_.takes_negative()) {
    for (const TensorSpec& tensor : manifest_.graph(kPromptEncoder).outputs) {
      const Slot slot{kNegative + tensor.name};
      write(slot, Bytes(plan_.buffers.at(slot.buffer).row_bytes()));
    }
  }
  return warnings;
}

void TextEncoder::prepare(Tokenizers& tokenizers, const Part& part, const Prompts& prompts,
                          Side& side, std::vector<std::string>& warnings) {
  side.runs.clear();
  const auto* embeds = std::get_if<Embeds>(&prompts);
  if (embeds != nullptr && missing_chunks(manifest_, *embeds) == 0) {
    write_given(part, *embeds, side);
    return;
  }
  for (std::size_t row = 0; row < batch(); ++row) {
    std::vector<std::string> own;  // two tokenizers may say the same
    const std::size_t image = static_cast<std::size_t>(part.first) + row;
    side.runs.push_back(runs_of(tokenizers, part, prompts, image, own));
    own.erase(std::unique(own.begin(), own.end()), own.end());
    warnings.insert(warnings.end(), own.begin(), own.end());
  }
  for (const InputSpec& tensor : manifest_.graph(kPromptEncoder).inputs) {
    if (!std::holds_alternative<FromParameter>(tensor.origin)) continue;
    write({buffer_of(tensor, side.negative)},
          encoder_rows(part.call, static_cast<std::size_t>(part.first), batch(), tensor,
                       side.negative));
  }
  write_tokens(side, 0);
}

std::vector<EncoderRun> TextEncoder::runs_of(Tokenizers& tokenizers, const Part& part,
                                             const Prompts& prompts, std::size_t image,
                                             std::vector<std::string>& warnings) const {
  if (const auto* texts = std::get_if<Texts>(&prompts)) {
    const std::string& text = (*texts)[image];
    if (!reads_a1111(part.call.settings.parameters)) {
      return {plain_run(manifest_, tokenizers, text, warnings)};
    }
    return encoder_runs(manifest_, tokenizers, read_a1111(text, "prompt"), warnings);
  }
  if (const auto* given = std::get_if<TokenIds>(&prompts)) {
    EncoderRun run;
    for (const auto& [name, rows] : *given) run.ids[name] = rows[image];
    return {run};
  }
  return {plain_run(manifest_, tokenizers, "", warnings)};  // what embeddings are filled up with
}

void TextEncoder::write_tokens(const Side& side, std::size_t number) {
  for (const InputSpec& tensor : manifest_.graph(kPromptEncoder).inputs) {
    const Slot slot{buffer_of(tensor, side.negative)};
    if (const auto* tokens = std::get_if<FromTokens>(&tensor.origin)) {
      write_padded(slot, tokens->tokenizer, side, number, false);
    } else if (const auto* mask = std::get_if<FromMask>(&tensor.origin)) {
      write_padded(slot, mask->tokenizer, side, number, true);
    }
  }
}

void TextEncoder::write_padded(const Slot& slot, const std::string& tokenizer, const Side& side,
                               std::size_t number, bool mask) {
  const TokenizerSpec& spec = *manifest_.tokenizers.find(tokenizer);
  const auto length = static_cast<std::size_t>(spec.max_length);
  // Before there are so many.
  check_slot(plan_.buffers, slot, side.runs.size() * length * sizeof(std::int64_t));
  std::vector<std::int64_t> values;
  for (const std::vector<EncoderRun>& runs : side.runs) {
    // An image that has fewer runs reads its first one again, to no purpose.
    const auto& ids = runs[number < runs.size() ? number : 0].ids.at(tokenizer);
    if (mask) {
      values.insert(values.end(), ids.size(), 1);
    } else {
      values.insert(values.end(), ids.begin(), ids.end());
    }
    values.insert(values.end(), length - ids.size(), mask ? 0 : spec.pad_token_id);
  }
  memory_.write(slot, values.data(), values.size() * sizeof(std::int64_t));
}

void TextEncoder::write_given(const Part& part, const Embeds& embeds, const Side& side) {
  for (const auto& [name, value] : embeds) {
    const Slot slot{side.prefix + name};
    const BufferSpec& spec = plan_.buffers.at(slot.buffer);
    const std::size_t each = spec.row_bytes() / batch();
    Bytes rows;
    for (std::size_t row = 0; row < batch(); ++row) {
      const Bytes one = given_row(value, static_cast<std::size_t>(part.first) + row, spec.dtype);
      for (std::size_t i = 0; i < each / one.size(); ++i) append(rows, one);
    }
    write(slot, rows);
  }
}

void TextEncoder::encode(const Part& part) {
  encode(part, part.call.prompts, prompts_);
  if (part.call.negatives) encode(part, *part.call.negatives, negatives_);
  replace_negatives(part);
}

void TextEncoder::encode(const Part& part, const Prompts& prompts, const Side& side) {
  if (side.runs.empty()) return;
  const auto* given = std::get_if<Embeds>(&prompts);
  std::size_t most = 0;
  bool joined = given != nullptr;
  for (const auto& [name, chunks] : chunks_) joined = joined || chunks > 1;
  for (const std::vector<EncoderRun>& runs : side.runs) {
    most = std::max(most, runs.size());
    joined = joined || std::any_of(runs.begin(), runs.end(),
                                   [](const EncoderRun& run) { return !run.weights.empty(); });
  }
  Made made;
  for (const auto& [name, chunks] : chunks_) made[name].resize(most);
  // The first run comes last: outputs that are read of it alone stay as it leaves them.
  for (std::size_t number = most; number-- > 0;) {
    if (most > 1) write_tokens(side, number);
    launches_.at(side.negative ? 1 : 0)();
    if (!joined) continue;
    for (auto& [name, each] : made) {
      each[number] = read({encoded_buffer(chunks_, name, side.negative)});
    }
  }
  if (joined) join(part, given, side, made);
}

// Attention over tokens that are all repeated equally often is attention over the tokens.
void TextEncoder::join(const Part& part, const Embeds* given, const Side& side, const Made& made) {
  for (const TensorSpec& tensor : manifest_.graph(kPromptEncoder).outputs) {
    const auto chunks = chunks_.find(tensor.name);
    if (chunks == chunks_.end()) {
      if (given == nullptr) continue;
      Bytes rows;
      for (std::size_t row = 0; row < batch(); ++row) {
        append(rows, given_row(given->at(tensor.name), static_cast<std::size_t>(part.first) + row,
                               tensor.dtype));
      }
      write({side.prefix + tensor.name}, rows);
      continue;
    }
    const std::vector<Bytes>& each = made.at(tensor.name);
    Bytes rows;
    for (std::size_t row = 0; row < batch(); ++row) {
      const std::vector<EncoderRun>& runs = side.runs[row];
      Bytes whole;
      std::int64_t number = 0;
      if (given != nullptr) {
        const Tensor& value = given->at(tensor.name);
        append(whole,
               given_row(value, static_cast<std::size_t>(part.first) + row, tensor.dtype));
        const std::int64_t before = value.shape[1] / tensor.shape[1].size;
        number = filled_up(before, chunks->second);
        const Bytes empty = row_of(each[0], row, batch());
        for (std::int64_t i = before; i < number; ++i) append(whole, empty);
      } else {
        number = static_cast<std::int64_t>(runs.size());
        for (std::size_t run = 0; run < runs.size(); ++run) {
          append(whole, weighted(runs[run], tensor, row_of(each[run], row, batch())));
        }
      }
      for (std::int64_t i = 0; i < chunks->second / number; ++i) append(rows, whole);
    }
    write({side.prefix + tensor.name}, rows);
  }
}

Bytes TextEncoder::weighted(const EncoderRun& run, const TensorSpec& tensor, Bytes tokens) const {
  if (run.weights.empty()) return tokens;
  const std::size_t size = bytes_of(tensor.dtype);
  std::vector<double> numbers(tokens.size() / size);
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    numbers[i] = number_at(tokens.data() + i * size, tensor.dtype);
  }
  apply_weights(manifest_, run, tensor.shape.back().size, numbers);
  const bool half = tensor.dtype == DType::float16;
  const double largest =
      half ? double(kLargestFiniteHalf) : double(std::numeric_limits<float>::max());
  std::vector<float> rounded;
  rounded.reserve(numbers.size());
  for (const double number : numbers) {
    const double clipped = std::clamp(number, -largest, largest);
    rounded.push_back(half ? towards_half(clipped) : static_cast<float>(clipped));
  }
  return converted(rounded.data(), rounded.size(), tensor.dtype);
}

void TextEncoder::replace_negatives(const Part& part) {
  std::vector<std::size_t> rows;
  for (std::size_t row = 0; row < batch(); ++row) {
    const std::size_t image = static_cast<std::size_t>(part.first) + row;
    if (by_prompt_alone(manifest_, part.call.guidance_scale(image))) rows.push_back(row);
  }
  if (rows.empty()) return;
  for (const TensorSpec& tensor : manifest_.graph(kPromptEncoder).outputs) {
    const Bytes own = read({tensor.name});
    Bytes negative = read({kNegative + tensor.name});
    const std::size_t each = own.size() / batch();
    for (const std::size_t row : rows) {
      std::copy_n(own.begin() + static_cast<std::ptrdiff_t>(row * each), each,
                  negative.begin() + static_cast<std::ptrdiff_t>(row * each));
    }
    write({kNegative + tensor.name}, negative);
  }
}

}  // namespace tgate
