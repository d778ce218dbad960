#include "binding_plan.hpp"

#include <algorithm>
#include <set>
#include <variant>

#include <tgate/error.hpp>

#include "counts.hpp"
#include "text.hpp"
#include "sampler_table.hpp"

namespace tgate {
namespace {

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

using Dims = std::map<std::string, std::int64_t>;

// Of images of `height` x `width` pixels, or of tiles.
Dims named_dims(const Manifest& manifest, std::int64_t batch, std::int64_t height,
                std::int64_t width) {
  const std::int64_t h = height / manifest.latent_downscale;
  const std::int64_t w = width / manifest.latent_downscale;
  Dims dims{{"batch", batch},     {"channels", manifest.latent_channels},
            {"height", height},   {"width", width},
            {"latent_height", h}, {"latent_width", w}};
  for (const auto& [name, dimension] : manifest.dimensions) {
    // The sides are below 2^31: of three factors, the product of two cannot overflow.
    const std::int64_t area =
        divide_up(h, dimension.downsample) * divide_up(w, dimension.downsample);
    const auto tokens = elements_of({dimension.times, std::max<std::int64_t>(area, 1)});
    if (!tokens) {
      throw Error(ErrorKind::bundle, "dimension " + quote(name) + " cannot be allocated",
                  "dimensions." + name);
    }
    dims.emplace(name, static_cast<std::int64_t>(*tokens));
  }
  return dims;
}

std::string dims_text(const TensorSpec& tensor) {
  std::vector<std::string> dims;
  for (const Dim& dim : tensor.shape) {
    dims.push_back(dim.size ? std::to_string(dim.size) : quote(dim.name));
  }
  return "[" + join(dims) + "]";
}

Shape concrete(const std::string& graph, const TensorSpec& tensor, const Dims& dims) {
  Shape shape;
  for (const Dim& dim : tensor.shape) {
    const auto named = dims.find(dim.name);
    if (dim.size == 0 && named == dims.end()) {
      throw Error(ErrorKind::bundle, "graph " + quote(graph) + ": " + quote(tensor.name) +
                                         " has a dimension " + quote(dim.name) +
                                         " that nothing says the size of");
    }
    shape.push_back(dim.size ? dim.size : named->second);
  }
  return shape;
}

// Plans the launches of one run.
class Planner {
 public:
  Planner(const Manifest& manifest, const RunShape& shape)
      : manifest_(manifest),
        dims_(named_dims(manifest, shape.batch, shape.height, shape.width)),
        tile_dims_(dims_),
        chunks_(manifest.chunks()) {
    if (const auto& tiles = manifest.graph(kVaeDecoder).tiles) {
      tile_dims_ = named_dims(manifest, shape.batch, std::min(shape.height, tiles->size),
                              std::min(shape.width, tiles->size));
    }
    add_loop(shape);
    add_graph(kPromptEncoder);
    add_graph(kVaeDecoder);
    for (const std::string& phase : shape.phases) {
      if (added_.count(phase) == 0) add_graph(phase);
    }
    if (manifest.takes_negative()) add_graph(kPromptEncoder, true);
  }

  // Binds a graph's tensors. `loop`: slots of what the step loop gives it, by what it is;
  // `outputs`: slots of outputs that are not in the buffers of their own names.
  Launch bind(const std::string& name, const std::map<std::string, Slot>& loop = {},
              const std::map<std::string, Slot>& outputs = {}, bool negative = false) const {
    const Graph& graph = manifest_.graph(name);
    Launch launch{name, {}, {}};
    for (const InputSpec& tensor : graph.inputs) {
      Slot slot{buffer_of(tensor, negative)};
      if (const auto* origin = std::get_if<FromLoop>(&tensor.origin)) {
        const auto given = loop.find(origin->loop);
        slot = given == loop.end() ? Slot{origin->loop} : given->second;
      }
      check_fit(name, tensor, slot);
      launch.inputs.emplace_back(tensor.name, std::move(slot));
    }
    for (const TensorSpec& tensor : graph.outputs) {
      const auto given = outputs.find(tensor.name);
      Slot slot =
          given == outputs.end() ? Slot{output_buffer(name, tensor, negative)} : given->second;
      check_fit(name, tensor, slot);
      launch.outputs.emplace_back(tensor.name, std::move(slot));
    }
    return launch;
  }

  Buffers take_buffers() { return std::move(buffers_); }

 private:
  void add_loop(const RunShape& shape) {
    const int evaluations = static_cast<int>(shape.phases.size());
    const Shape latents{shape.batch, dims_.at("channels"), dims_.at("latent_height"),
                        dims_.at("latent_width")};
    Shape history = latents;
    history.insert(history.begin() + 1, kHistory);
    constexpr DType kFloat = DType::float32;
    buffers_ = {
        {"timestep", {kFloat, {shape.batch}, evaluations}},
        {"weights", {kFloat, {shape.batch, kNumWeights}, evaluations}},
        // Zeros that every step shares, unless the sampler draws some.
        {"noise", {kFloat, latents, shape.draws_noise ? evaluations : 0}},
        {"denoiser_input", {kFloat, latents}},
        {"noise_pred", {kFloat, latents}},
        {"images", {kFloat, {shape.batch, tile_dims_.at("height"), tile_dims_.at("width"), 3}}},
        // A tile of the final ones, where they are decoded in tiles.
        {"latents", {kFloat, {shape.batch, dims_.at("channels"), tile_dims_.at("latent_height"),
                              tile_dims_.at("latent_width")}}},
    };
    for (const char* parity : {"0", "1"}) {
      buffers_[std::string("sample.") + parity] = {kFloat, latents};
      buffers_[std::string("history.") + parity] = {kFloat, history};
    }
  }

  void add_graph(const std::string& name, bool negative = false) {
    const Graph& graph = manifest_.graph(name);
    added_.insert(name);
    for (const InputSpec& tensor : graph.inputs) {
      check_origin(name, tensor);
      if (!std::holds_alternative<FromLoop>(tensor.origin)) {
        add(buffer_of(tensor, negative), name, tensor);
      }
    }
    for (const TensorSpec& tensor : graph.outputs) {
      const std::string buffer = output_buffer(name, tensor, negative);
      add(buffer, name, tensor);
      const std::string joined = (negative ? kNegative : "") + tensor.name;
      if (buffer == joined) continue;
      BufferSpec whole = buffers_.at(buffer);
      whole.shape.at(1) *= chunks_.at(tensor.name);
      buffers_.emplace(joined, std::move(whole));
    }
  }

  std::string output_buffer(const std::string& graph, const TensorSpec& tensor,
                            bool negative) const {
    if (graph == kPromptEncoder) return encoded_buffer(chunks_, tensor.name, negative);
    return (negative ? kNegative : "") + tensor.name;
  }

  void add(const std::string& buffer, const std::string& graph, const TensorSpec& tensor) {
    // The first decides: `check_fit` finds out where another one differs.
    buffers_.emplace(buffer, BufferSpec{tensor.dtype, concrete(graph, tensor, dims_of(graph))});
  }

  // A run has a single graph before its loop.
  void check_origin(const std::string& name, const InputSpec& tensor) const {
    const auto* origin = std::get_if<FromGraph>(&tensor.origin);
    if (origin == nullptr || origin->graph == kPromptEncoder) return;
    throw Error(ErrorKind::bundle, "graph " + quote(name) + " reads what graph " +
                                       quote(origin->graph) +
                                       " makes, which this runtime does not run: use the Python "
                                       "one");
  }

  void check_fit(const std::string& graph, const TensorSpec& tensor, const Slot& slot) const {
    const auto found = buffers_.find(slot.buffer);
    if (found != buffers_.end() && found->second.dtype == tensor.dtype &&
        found->second.shape == concrete(graph, tensor, dims_of(graph))) {
      return;
    }
    const std::string has =
        found == buffers_.end()
            ? "nothing"
            : std::string(name_of(found->second.dtype)) + " " + shape_text(found->second.shape);
    throw Error(ErrorKind::bundle, "graph " + quote(graph) + ": tensor " + quote(tensor.name) +
                                       " is " + name_of(tensor.dtype) + " " + dims_text(tensor) +
                                       ", but buffer " + quote(slot.buffer) + " is " + has);
  }

  const Dims& dims_of(const std::string& graph) const {
    return graph == kVaeDecoder ? tile_dims_ : dims_;
  }

  const Manifest& manifest_;
  Dims dims_;
  Dims tile_dims_;  // of the decoder
  std::map<std::string, std::int64_t> chunks_;
  Buffers buffers_;
  std::set<std::string> added_;
};

Slot alternating(const char* name, std::size_t step) {
  return {std::string(name) + (step % 2 ? ".1" : ".0")};
}

}  // namespace

std::string buffer_of(const InputSpec& tensor, bool negative) {
  struct Namer {
    const std::string& name;
    std::string prefix;

    std::string operator()(const FromParameter& origin) const {
      return (origin.of ? prefix : "") + "parameter/" + origin.parameter;
    }
    std::string operator()(const FromTokens& origin) const {
      return prefix + "tokens/" + origin.tokenizer;
    }
    std::string operator()(const FromMask& origin) const {
      return prefix + "mask/" + origin.tokenizer;
    }
    std::string operator()(const FromGraph& origin) const {
      return (origin.of == Of::negative_prompt ? kNegative : "") + origin.output;
    }
    std::string operator()(const FromImage& origin) const {
      return "image/" + origin.image + "/" + number_text(origin.range[0]) + "/" +
             number_text(origin.range[1]) + "/" + origin.noise.value_or("");
    }
    std::string operator()(const FromFormula& origin) const {
      return std::string("formula/") + name_of(origin.formula);
    }
    std::string operator()(const FromCache& origin) const { return origin.cache; }
    std::string operator()(const FromLoop&) const { return name; }  // its slots are the run's
  };
  return std::visit(Namer{tensor.name, negative ? kNegative : ""}, tensor.origin);
}

std::string encoded_buffer(const std::map<std::string, std::int64_t>& chunks,
                           const std::string& output, bool negative) {
  const auto found = chunks.find(output);
  const bool several = found != chunks.end() && found->second > 1;
  return (several ? "chunk/" : "") + ((negative ? kNegative : "") + output);
}

std::size_t BufferSpec::row_elements() const {
  if (const auto count = elements_of(shape)) return *count;
  throw Error(ErrorKind::bundle, "a tensor of shape " + shape_text(shape) + " cannot be allocated");
}

const BufferSpec& check_slot(const Buffers& buffers, const Slot& slot, std::size_t bytes) {
  const auto found = buffers.find(slot.buffer);
  const std::string again = ": build the bundle again";
  if (found == buffers.end()) {
    throw Error(ErrorKind::bundle, "no graph has a tensor " + quote(slot.buffer) + again);
  }
  const BufferSpec& spec = found->second;
  if (slot.row >= spec.slots()) {
    throw Error(ErrorKind::bundle, "buffer " + quote(slot.buffer) + " has no row " +
                                       std::to_string(slot.row) + again);
  }
  if (spec.row_bytes() != bytes) {
    throw Error(ErrorKind::bundle, "buffer " + quote(slot.buffer) + " has " +
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
  Planner planner(manifest, shape);
  BindingPlan plan;
  plan.encode.push_back(planner.bind(kPromptEncoder));
  if (manifest.takes_negative()) {
    plan.encode.push_back(planner.bind(kPromptEncoder, {}, {}, true));
  }
  for (std::size_t step = 0; step < shape.phases.size(); ++step) {
    const int row = static_cast<int>(step);
    plan.steps.push_back(
        {planner.bind(shape.phases[step],
                      {{"sample", {"denoiser_input"}}, {"timestep", {"timestep", row}}}),
         planner.bind("sampler",
                      {{"sample", alternating("sample", step)},
                       {"history", alternating("history", step)},
                       {"weights", {"weights", row}},
                       {"noise", {"noise", shape.draws_noise ? row : -1}}},
                      {{"next_sample", alternating("sample", step + 1)},
                       {"next_history", alternating("history", step + 1)}})});
  }
  plan.latents = alternating("sample", shape.phases.size());
  const bool tiled = manifest.graph(kVaeDecoder).tiles.has_value();
  plan.decode = planner.bind(kVaeDecoder, {{"latents", tiled ? Slot{"latents"} : plan.latents}});
  plan.buffers = planner.take_buffers();
  return plan;
}

}  // namespace tgate
