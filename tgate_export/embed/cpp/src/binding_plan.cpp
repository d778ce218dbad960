#include "binding_plan.hpp"

#include <tgate/error.hpp>

#include "counts.hpp"
#include "python_text.hpp"
#include "sampler_table.hpp"

namespace tgate {
namespace {

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

Shape with_batch(std::int64_t batch, const TensorSpec& tensor) {
  Shape shape{batch};
  for (std::size_t i = 1; i < tensor.shape.size(); ++i) {
    if (tensor.shape[i].size == 0) {
      throw Error(ErrorKind::bundle, "dimension " + repr(tensor.shape[i].name) + " of " +
                                         repr(tensor.name) + " should be fixed in the manifest");
    }
    shape.push_back(tensor.shape[i].size);
  }
  return shape;
}

Buffers make_buffers(const Manifest& manifest, const RunShape& shape) {
  const std::int64_t batch = shape.batch;
  const std::int64_t h = shape.height / manifest.latent_downscale;
  const std::int64_t w = shape.width / manifest.latent_downscale;
  const int evaluations = static_cast<int>(shape.phases.size());
  const Shape latents{batch, manifest.latent_channels, h, w};
  const Shape history{batch, kHistory, manifest.latent_channels, h, w};
  constexpr DType kFloat = DType::float32;
  Buffers buffers{
      {"guidance_scale", {kFloat, {batch}}},
      {"guidance_rescale", {kFloat, {batch}}},
      {"timestep", {kFloat, {batch}, evaluations}},
      {"weights", {kFloat, {batch, kNumWeights}, evaluations}},
      // Zeros that every step shares, unless the sampler draws some.
      {"noise", {kFloat, latents, shape.draws_noise ? evaluations : 0}},
      {"denoiser_input", {kFloat, latents}},
      {"noise_pred", {kFloat, latents}},
      {"images", {kFloat, {batch, shape.height, shape.width, 3}}},
  };
  for (const char* parity : {"0", "1"}) {
    buffers[std::string("sample.") + parity] = {kFloat, latents};
    buffers[std::string("history.") + parity] = {kFloat, history};
  }
  // A tensor of a manifest that took one of ours, of another type, would be read as what ours is.
  const auto add = [&](const std::string& name, BufferSpec spec) {
    if (!buffers.emplace(name, std::move(spec)).second) {
      throw Error(ErrorKind::bundle,
                  "two tensors of the bundle are called " + repr(name) + ": build the bundle again");
    }
  };
  const Graph& encoder = manifest.graph("text_encoder");
  for (const auto* tensors : {&encoder.inputs, &encoder.outputs}) {
    for (const TensorSpec& tensor : *tensors) {
      const BufferSpec spec{tensor.dtype, with_batch(batch, tensor)};
      add(tensor.name, spec);
      add(kNegative + tensor.name, spec);
    }
  }
  for (const TensorSpec& tensor : manifest.graph("full").inputs) {
    if (manifest.conditioning.contains(tensor.name)) {
      add(tensor.name, {kFloat, with_batch(batch, tensor)});
    }
  }
  for (const Cache& cache : manifest.cache) {
    Shape stacked{batch};
    if (cache.passes) stacked.push_back(*cache.passes);
    stacked.push_back(cache.layers);
    const auto downsample = cache.downsample;
    stacked.push_back(downsample ? divide_up(h, *downsample) * divide_up(w, *downsample) : 1);
    stacked.push_back(cache.width);
    DType dtype = kFloat;
    for (const TensorSpec& tensor : manifest.graph("full").outputs) {
      if (tensor.name == cache.tensor) dtype = tensor.dtype;
    }
    add(cache.tensor, {dtype, stacked});
  }
  return buffers;
}

void check_fit(const std::string& graph, const TensorSpec& tensor, const Buffers& buffers,
               const Slot& slot) {
  const auto found = buffers.find(slot.buffer);
  bool fits = found != buffers.end() && found->second.dtype == tensor.dtype &&
              found->second.shape.size() == tensor.shape.size();
  for (std::size_t i = 0; fits && i < tensor.shape.size(); ++i) {
    fits = tensor.shape[i].size == 0 || tensor.shape[i].size == found->second.shape[i];
  }
  if (fits) return;
  std::vector<std::string> dims;
  for (const Dim& dim : tensor.shape) {
    dims.push_back(dim.size ? std::to_string(dim.size) : repr(dim.name));
  }
  const std::string has =
      found == buffers.end()
          ? "nothing"
          : std::string(name_of(found->second.dtype)) + " " + repr(found->second.shape);
  throw Error(ErrorKind::bundle, "graph " + repr(graph) + ": tensor " + repr(tensor.name) +
                                     " is " + name_of(tensor.dtype) + " [" + join(dims) +
                                     "], but buffer " + repr(slot.buffer) + " is " + has);
}

// Binds a graph's tensors to `slots`, and the others to the buffers of their own names.
Launch bind(const Manifest& manifest, const Buffers& buffers, const std::string& name,
            const std::map<std::string, Slot>& slots) {
  const Graph& graph = manifest.graph(name);
  const auto bound = [&](const std::vector<TensorSpec>& tensors) {
    Bound result;
    for (const TensorSpec& tensor : tensors) {
      const auto given = slots.find(tensor.name);
      Slot slot = given == slots.end() ? Slot{tensor.name} : given->second;
      check_fit(name, tensor, buffers, slot);
      result.emplace_back(tensor.name, std::move(slot));
    }
    return result;
  };
  return {name, bound(graph.inputs), bound(graph.outputs)};
}

Slot alternating(const char* name, std::size_t step) {
  return {std::string(name) + (step % 2 ? ".1" : ".0")};
}

}  // namespace

std::size_t BufferSpec::row_elements() const {
  if (const auto count = elements_of(shape)) return *count;
  throw Error(ErrorKind::bundle, "a tensor of shape " + repr(shape) + " cannot be allocated");
}

const BufferSpec& check_slot(const Buffers& buffers, const Slot& slot, std::size_t bytes) {
  const auto found = buffers.find(slot.buffer);
  const std::string again = ": build the bundle again";
  if (found == buffers.end()) {
    throw Error(ErrorKind::bundle, "no graph has a tensor " + repr(slot.buffer) + again);
  }
  const BufferSpec& spec = found->second;
  if (slot.row >= spec.slots()) {
    throw Error(ErrorKind::bundle, "buffer " + repr(slot.buffer) + " has no row " +
                                       std::to_string(slot.row) + again);
  }
  if (spec.row_bytes() != bytes) {
    throw Error(ErrorKind::bundle, "buffer " + repr(slot.buffer) + " has " +
                                       std::to_string(spec.row_bytes()) + " bytes, not " +
                                       std::to_string(bytes) + again);
  }
  return spec;
}

bool RunShape::operator==(const RunShape& other) const {
  return batch == other.batch && height == other.height && width == other.width &&
         phases == other.phases && draws_noise == other.draws_noise;
}

std::vector<const Launch*> BindingPlan::launches() const {
  std::vector<const Launch*> all;
  for (const Launch& launch : encode) all.push_back(&launch);
  for (const Step& step : steps) {
    all.push_back(&step.denoiser);
    all.push_back(&step.sampler);
  }
  all.push_back(&decode);
  return all;
}

BindingPlan plan_run(const Manifest& manifest, const RunShape& shape) {
  BindingPlan plan;
  plan.buffers = make_buffers(manifest, shape);
  plan.encode.push_back(bind(manifest, plan.buffers, "text_encoder", {}));
  if (manifest.guidance == "classifier-free") {
    std::map<std::string, Slot> negative;
    const Graph& encoder = manifest.graph("text_encoder");
    for (const auto* tensors : {&encoder.inputs, &encoder.outputs}) {
      for (const TensorSpec& tensor : *tensors) negative[tensor.name] = {kNegative + tensor.name};
    }
    plan.encode.push_back(bind(manifest, plan.buffers, "text_encoder", negative));
  }
  for (std::size_t step = 0; step < shape.phases.size(); ++step) {
    const int row = static_cast<int>(step);
    plan.steps.push_back(
        {bind(manifest, plan.buffers, name_of(shape.phases[step]),
              {{"sample", {"denoiser_input"}}, {"timestep", {"timestep", row}}}),
         bind(manifest, plan.buffers, "sampler",
              {{"sample", alternating("sample", step)},
               {"history", alternating("history", step)},
               {"weights", {"weights", row}},
               {"noise", {"noise", shape.draws_noise ? row : -1}},
               {"next_sample", alternating("sample", step + 1)},
               {"next_history", alternating("history", step + 1)}})});
  }
  plan.latents = alternating("sample", shape.phases.size());
  plan.decode = bind(manifest, plan.buffers, "vae_decoder", {{"latents", plan.latents}});
  return plan;
}

}  // namespace tgate
