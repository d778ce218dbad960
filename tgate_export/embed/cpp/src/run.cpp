#include "run.hpp"

#include <algorithm>

#include "bundle_files.hpp"
#include "files.hpp"
#include "half.hpp"
#include "noise.hpp"
#include "prompts.hpp"
#include "python_text.hpp"

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
         " tokens that the text encoder takes; this part was left out: " + repr(text);
}

}  // namespace

const Tokenizer& Tokenizers::get(const std::string& input) {
  const auto found = loaded_.find(input);
  if (found != loaded_.end()) return found->second;
  const std::string& file = bundle_.manifest.tokenizers.find(input)->file;
  const std::string text = read_bundle_file(bundle_, file, kMostTableBytes);
  const std::string where = bundle_.file(file).string();
  return loaded_.emplace(input, Tokenizer(text, where)).first->second;
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

Tensor PreparedRun::images() const { return read({"images"}); }

std::vector<std::string> PreparedRun::write_inputs(Tokenizers& tokenizers, const Part& part,
                                                   const SamplerSteps& sampler) {
  std::vector<std::string> warnings;
  const Call& call = part.call;
  write_prompts(tokenizers, "", call.prompts, part.first, warnings);
  if (call.negatives) {
    write_prompts(tokenizers, kNegative, *call.negatives, part.first, warnings);
  } else if (manifest_.guidance == "classifier-free") {
    for (const TensorSpec& tensor : manifest_.graph("text_encoder").outputs) {
      const Slot slot{kNegative + tensor.name};
      write(slot, std::vector<char>(plan_.buffers.at(slot.buffer).row_bytes()));
    }
  }
  write_conditions(call, part.first);
  write_sampler(sampler);
  write_sample(part, sampler);
  return warnings;
}

void PreparedRun::write_prompts(Tokenizers& tokenizers, const std::string& prefix,
                                const Prompts& prompts, int first,
                                std::vector<std::string>& warnings) {
  if (const auto* embeds = std::get_if<Embeds>(&prompts)) {
    for (const auto& [name, value] : *embeds) write_embeds(prefix + name, value, first);
    return;
  }
  const auto* given = std::get_if<TokenIds>(&prompts);
  for (const auto& [input, spec] : manifest_.tokenizers) {
    std::vector<std::vector<std::int64_t>> rows;
    for (int image = first; image < first + static_cast<int>(shape_.batch); ++image) {
      const auto index = static_cast<std::size_t>(image);
      if (given != nullptr) {
        rows.push_back(given->at(input)[index]);
        continue;
      }
      const Tokenizer& tokenizer = tokenizers.get(input);
      const auto length = static_cast<std::size_t>(spec.max_length);
      std::vector<std::int64_t> ids = tokenizer.encode(std::get<Texts>(prompts)[index], length);
      if (ids.size() > length) {
        warnings.push_back(left_out(tokenizer, ids, length));
        ids.resize(length - 1);
        ids.push_back(spec.eos_token_id);
      }
      rows.push_back(std::move(ids));
    }
    write_ids(prefix, input, spec, rows);
  }
}

void PreparedRun::write_ids(const std::string& prefix, const std::string& input,
                            const TokenizerSpec& spec,
                            const std::vector<std::vector<std::int64_t>>& rows) {
  const auto length = static_cast<std::size_t>(spec.max_length);
  const Slot slot{prefix + input};
  // Before there are so many.
  check_slot(plan_.buffers, slot, rows.size() * length * sizeof(std::int64_t));
  std::vector<std::int64_t> ids, mask;
  for (const auto& row : rows) {
    ids.insert(ids.end(), row.begin(), row.end());
    mask.insert(mask.end(), row.size(), 1);
    ids.insert(ids.end(), length - row.size(), spec.pad_token_id);
    mask.insert(mask.end(), length - row.size(), 0);
  }
  write(slot, ids);
  if (spec.mask) write({prefix + *spec.mask}, mask);
}

void PreparedRun::write_embeds(const std::string& slot, const Tensor& value, int first) {
  const BufferSpec& spec = plan_.buffers.at(slot);
  const std::size_t elements = spec.row_elements();
  const std::size_t each = elements / static_cast<std::size_t>(shape_.batch);
  const auto begin =
      value.data.begin() + static_cast<std::ptrdiff_t>(each * static_cast<std::size_t>(first));
  const std::vector<float> part(begin, begin + static_cast<std::ptrdiff_t>(elements));
  if (spec.dtype == DType::float32) {
    write({slot}, part);
  } else if (spec.dtype == DType::float16) {
    std::vector<std::uint16_t> halves(part.size());
    std::transform(part.begin(), part.end(), halves.begin(), to_half);
    write({slot}, halves);
  } else {
    write({slot}, std::vector<std::int64_t>(part.begin(), part.end()));
  }
}

void PreparedRun::write_conditions(const Call& call, int first) {
  const auto batch = static_cast<std::size_t>(shape_.batch);
  for (const auto& [name, kind] : manifest_.conditioning) {
    const auto height = static_cast<float>(shape_.height);
    const auto width = static_cast<float>(shape_.width);
    std::vector<float> row;
    if (kind == "time_ids") {
      row.assign(call.told.begin(), call.told.end());
    } else if (kind == "resolution") {
      row = {height, width};
    } else {
      // In 64 bits, then rounded.
      row = {static_cast<float>(static_cast<double>(shape_.height) /
                                static_cast<double>(shape_.width))};
    }
    std::vector<float> values;
    for (std::size_t i = 0; i < batch; ++i) values.insert(values.end(), row.begin(), row.end());
    write({name}, values);
  }
  std::vector<float> scales;
  for (std::size_t row = 0; row < batch; ++row) {
    const double scale = call.settings.guidance_scales[static_cast<std::size_t>(first) + row];
    scales.push_back(by_prompt_alone(manifest_, scale) ? 1.0F : static_cast<float>(scale));
  }
  write({"guidance_scale"}, scales);
  write({"guidance_rescale"},
        std::vector<float>(batch, static_cast<float>(call.settings.guidance_rescale)));
  if (manifest_.clip_skips > 0) {
    write({"clip_skip"}, std::vector<std::int64_t>(batch, call.settings.clip_skip));
    write({kNegative + "clip_skip"}, std::vector<std::int64_t>(batch, 0));
  }
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
    if (by_prompt_alone(manifest_, part.call.settings.guidance_scales[image])) rows.push_back(row);
  }
  if (rows.empty()) return;
  for (const TensorSpec& tensor : manifest_.graph("text_encoder").outputs) {
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
