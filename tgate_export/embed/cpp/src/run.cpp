#include "run.hpp"

#include <algorithm>

#include "inputs.hpp"
#include "noise.hpp"

namespace tgate {
namespace {

std::vector<Execute> encoder_launches(Backend& backend, const BindingPlan& plan, Memory& memory) {
  std::vector<Execute> launches;
  for (const Launch& launch : plan.encode) launches.push_back(backend.prepare(launch, memory));
  return launches;
}

}  // namespace

PreparedRun::PreparedRun(Backend& backend, const Manifest& manifest, RunShape shape)
    : manifest_(manifest),
      shape_(std::move(shape)),
      plan_(plan_run(manifest, shape_)),
      memory_(backend.allocate(plan_)),
      encoder_(manifest, plan_, *memory_, encoder_launches(backend, plan_, *memory_),
               shape_.batch) {
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
  const Call& call = part.call;
  std::vector<std::string> warnings = encoder_.prepare(tokenizers, part);
  const auto first = static_cast<std::size_t>(part.first);
  const auto batch = static_cast<std::size_t>(shape_.batch);
  for (const auto& [buffer, tensor] : host_inputs(manifest_, shape_.phases)) {
    write({buffer}, host_rows(manifest_, call, first, batch, *tensor));
  }
  write_sampler(sampler);
  write_sample(part, sampler);
  return warnings;
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

}  // namespace tgate
