#include "run.hpp"

#include <algorithm>

#include "bundle_files.hpp"
#include "files.hpp"
#include "inputs.hpp"
#include "noise.hpp"
#include "prompts.hpp"
#include "text.hpp"

namespace tgate {
namespace {

std::string left_out(const Tokenizer& tokenizer, const std::vector<std::int64_t>& ids,
                     std::size_t length) {
  const auto end = static_cast<std::ptrdiff_t>(ids.size()) - 1;
  std::string text = tokenizer.decode(
      {ids.begin() + static_cast<std::ptrdiff_t>(length) - 1, ids.begin() + end});
  for (std::size_t at = 0; (at = text.find("</w>", at)) != std::string::npos; ++at) {
    text.replace(at, 4, " ");
  }
  const auto first = text.find_first_not_of(' ');
  text = first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(' ') + 1 - first);
  return "the prompt is longer than the " + std::to_string(length) +
         " tokens that the text encoder takes; this part was left out: " + quote(text);
}

}  // namespace

const Tokenizer& Tokenizers::get(const std::string& name) {
  const auto found = loaded_.find(name);
  if (found != loaded_.end()) return found->second;
  const std::string& file = bundle_.manifest.tokenizers.find(name)->file;
  const std::string text = read_bundle_file(bundle_, file, kMostTableBytes);
  const std::string where = bundle_.file(file).string();
  return loaded_.emplace(name, Tokenizer(text, where)).first->second;
}

PreparedRun::PreparedRun(Backend& backend, const Manifest& manifest, RunShape shape)
    : manifest_(manifest),
      shape_(std::move(shape)),
      plan_(plan_run(manifest, shape_)),
      memory_(backend.allocate(plan_)) {
  for (const Launch& launch : plan_.encode) encode_.push_back(backend.prepare(launch, *memory_));
  for (const Step& step : plan_.steps) {
    Execute denoiser = backend.prepare(step.denoiser, *memory_);
    steps_.emplace_back(std::move(denoiser), backend.prepare(step.sampler, *memory_));
  }
  decode_ = backend.prepare(plan_.decode, *memory_);
  if (const auto& tiles = manifest.graph(kVaeDecoder).tiles) {
    tiling_ = tiling_of(manifest, *tiles, shape_.height, shape_.width);
  }
}

template <class T>
void PreparedRun::write(const Slot& slot, const std::vector<T>& values) {
  memory_->write(slot, values.data(), values.size() * sizeof(T));
}

Tensor PreparedRun::read(const Slot& slot) const {
  const BufferSpec& spec = plan_.buffers.at(slot.buffer);
  Tensor tensor{spec.shape, std::vector<float>(spec.row_elements())};
  memory_->read(slot, tensor.data.data(), tensor.data.size() * sizeof(float));
  return tensor;
}

Tensor PreparedRun::latents_after(std::size_t step) const {
  for (const auto& [tensor, slot] : plan_.steps[step].sampler.outputs) {
    if (tensor == "next_sample") return read(slot);
  }
  throw std::logic_error("the sampler has no next_sample");
}

void PreparedRun::decode() {
  if (!tiling_) {
    decode_();
    return;
  }
  const Tensor latents = read(plan_.latents);
  Canvas canvas(*tiling_, shape_.batch);
  for (const std::int64_t top : tiling_->tops) {
    for (const std::int64_t left : tiling_->lefts) {
      write({"latents"}, cut(latents, *tiling_, top, left));
      decode_();
      canvas.add(read({"images"}), top, left);
    }
  }
  tiled_images_ = canvas.take();
}

Tensor PreparedRun::images() { return tiling_ ? std::move(tiled_images_) : read({"images"}); }

std::vector<std::string> PreparedRun::write_inputs(Tokenizers& tokenizers, const Part& part,
                                                   const SamplerSteps& sampler) {
  std::vector<std::string> warnings;
  const Call& call = part.call;
  write_prompts(tokenizers, part, call.prompts, false, warnings);
  if (call.negatives) {
    write_prompts(tokenizers, part, *call.negatives, true, warnings);
  } else if (manifest_.takes_negative()) {
    for (const TensorSpec& tensor : manifest_.graph(kPromptEncoder).outputs) {
      const Slot slot{kNegative + tensor.name};
      write(slot, Bytes(plan_.buffers.at(slot.buffer).row_bytes()));
    }
  }
  const auto first = static_cast<std::size_t>(part.first);
  const auto batch = static_cast<std::size_t>(shape_.batch);
  for (const auto& [buffer, tensor] : host_inputs(manifest_, shape_.phases)) {
    write({buffer}, host_rows(manifest_, call, first, batch, *tensor));
  }
  write_sampler(sampler);
  write_sample(part, sampler);
  return warnings;
}

void PreparedRun::write_prompts(Tokenizers& tokenizers, const Part& part, const Prompts& prompts,
                                bool negative, std::vector<std::string>& warnings) {
  if (const auto* embeds = std::get_if<Embeds>(&prompts)) {
    for (const auto& [name, value] : *embeds) {
      write_embeds((negative ? kNegative : "") + name, value, part.first);
    }
    return;
  }
  std::map<std::string, Rows> ids;  // of the part's images, by tokenizer
  for (const auto& [name, spec] : manifest_.tokenizers) {
    ids[name] = token_ids(tokenizers, name, spec, prompts, part.first, warnings);
  }
  for (const InputSpec& tensor : manifest_.graph(kPromptEncoder).inputs) {
    const Slot slot{buffer_of(tensor, negative)};
    if (const auto* tokens = std::get_if<FromTokens>(&tensor.origin)) {
      write_padded(slot, tokens->tokenizer, ids.at(tokens->tokenizer), false);
    } else if (const auto* mask = std::get_if<FromMask>(&tensor.origin)) {
      write_padded(slot, mask->tokenizer, ids.at(mask->tokenizer), true);
    } else if (std::holds_alternative<FromParameter>(tensor.origin)) {
      write(slot, encoder_rows(part.call, static_cast<std::size_t>(part.first),
                               static_cast<std::size_t>(shape_.batch), tensor, negative));
    }
  }
}

PreparedRun::Rows PreparedRun::token_ids(Tokenizers& tokenizers, const std::string& name,
                                         const TokenizerSpec& spec, const Prompts& prompts,
                                         int first, std::vector<std::string>& warnings) const {
  const auto* given = std::get_if<TokenIds>(&prompts);
  const auto length = static_cast<std::size_t>(spec.max_length);
  Rows rows;
  for (int image = first; image < first + static_cast<int>(shape_.batch); ++image) {
    const auto index = static_cast<std::size_t>(image);
    if (given != nullptr) {
      rows.push_back(given->at(name)[index]);
      continue;
    }
    const Tokenizer& tokenizer = tokenizers.get(name);
    std::vector<std::int64_t> ids = tokenizer.encode(std::get<Texts>(prompts)[index], length);
    if (ids.size() > length) {
      warnings.push_back(left_out(tokenizer, ids, length));
      ids.resize(length - 1);
      ids.push_back(spec.eos_token_id);
    }
    rows.push_back(std::move(ids));
  }
  return rows;
}

void PreparedRun::write_padded(const Slot& slot, const std::string& tokenizer, const Rows& rows,
                               bool mask) {
  const TokenizerSpec& spec = *manifest_.tokenizers.find(tokenizer);
  const auto length = static_cast<std::size_t>(spec.max_length);
  // Before there are so many.
  check_slot(plan_.buffers, slot, rows.size() * length * sizeof(std::int64_t));
  std::vector<std::int64_t> values;
  for (const auto& row : rows) {
    if (mask) {
      values.insert(values.end(), row.size(), 1);
    } else {
      values.insert(values.end(), row.begin(), row.end());
    }
    values.insert(values.end(), length - row.size(), mask ? 0 : spec.pad_token_id);
  }
  write(slot, values);
}

void PreparedRun::write_embeds(const std::string& slot, const Tensor& value, int first) {
  const std::size_t each = value.data.size() / static_cast<std::size_t>(value.shape[0]);
  const float* begin = value.data.data() + each * static_cast<std::size_t>(first);
  const DType dtype = plan_.buffers.at(slot).dtype;
  write({slot}, converted(begin, each * static_cast<std::size_t>(shape_.batch), dtype));
}

void PreparedRun::write_sampler(const SamplerSteps& sampler) {
  const auto batch = static_cast<std::size_t>(shape_.batch);
  for (std::size_t step = 0; step < sampler.timesteps.size(); ++step) {
    const int row = static_cast<int>(step);
    write({"timestep", row}, std::vector<float>(batch, sampler.timesteps[step]));
    std::vector<float> weights;
    for (std::size_t i = 0; i < batch; ++i) {
      weights.insert(weights.end(), sampler.weights[step].begin(), sampler.weights[step].end());
    }
    write({"weights", row}, weights);
  }
}

void PreparedRun::write_sample(const Part& part, const SamplerSteps& sampler) {
  const Call& call = part.call;
  std::vector<float> sample;
  const std::size_t elements = plan_.buffers.at("sample.0").row_elements();
  if (call.latents) {
    const std::size_t each = elements / static_cast<std::size_t>(shape_.batch);
    const auto begin = call.latents->data.begin() +
                       static_cast<std::ptrdiff_t>(each * static_cast<std::size_t>(part.first));
    sample.assign(begin, begin + static_cast<std::ptrdiff_t>(elements));
  } else {
    sample = draw(call, part.first, 0);
  }
  if (shape_.draws_noise) {
    for (std::size_t step = 0; step < sampler.timesteps.size(); ++step) {
      write({"noise", static_cast<int>(step)}, draw(call, part.first, step + 1));
    }
  }
  for (float& value : sample) value *= sampler.sample_scale;
  write({"sample.0"}, sample);
  for (float& value : sample) value *= sampler.input_scale;
  write({"denoiser_input"}, sample);
  write({"history.0"}, std::vector<float>(plan_.buffers.at("history.0").row_elements()));
}

std::vector<float> PreparedRun::draw(const Call& call, int first, std::size_t number) const {
  const std::size_t elements = plan_.buffers.at("sample.0").row_elements();
  std::vector<float> noise;
  for (std::int64_t image = first; image < first + shape_.batch; ++image) {
    const std::vector<float> own =
        standard_normal(elements / static_cast<std::size_t>(shape_.batch), call.settings.seed,
                        static_cast<std::uint64_t>(image), number);
    noise.insert(noise.end(), own.begin(), own.end());
  }
  return noise;
}

void PreparedRun::encode(const Part& part) {
  const Call& call = part.call;
  if (!std::holds_alternative<Embeds>(call.prompts)) encode_[0]();
  if (call.negatives && !std::holds_alternative<Embeds>(*call.negatives)) encode_[1]();
  replace_negatives(part);
}

void PreparedRun::replace_negatives(const Part& part) {
  const auto batch = static_cast<std::size_t>(shape_.batch);
  std::vector<std::size_t> rows;
  for (std::size_t row = 0; row < batch; ++row) {
    const std::size_t image = static_cast<std::size_t>(part.first) + row;
    if (by_prompt_alone(manifest_, part.call.guidance_scale(image))) rows.push_back(row);
  }
  if (rows.empty()) return;
  for (const TensorSpec& tensor : manifest_.graph(kPromptEncoder).outputs) {
    const std::size_t bytes = plan_.buffers.at(tensor.name).row_bytes();
    std::vector<char> own(bytes), negative(bytes);
    memory_->read({tensor.name}, own.data(), bytes);
    memory_->read({kNegative + tensor.name}, negative.data(), bytes);
    const std::size_t each = bytes / batch;
    for (const std::size_t row : rows) {
      std::copy_n(own.begin() + static_cast<std::ptrdiff_t>(row * each), each,
                  negative.begin() + static_cast<std::ptrdiff_t>(row * each));
    }
    write({kNegative + tensor.name}, negative);
  }
}

}  // namespace tgate
