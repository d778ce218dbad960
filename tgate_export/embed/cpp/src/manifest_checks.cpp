#include "manifest_checks.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <set>

#include "json_reader.hpp"
#include "parameters.hpp"
#include "text.hpp"

namespace tgate {
namespace {

std::string folder_of(const std::string& path) {
  const auto slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash);
}

void check_files(const Manifest& manifest) {
  std::set<std::string> used;
  for (const auto& [name, tokenizer] : manifest.tokenizers) used.insert(tokenizer.file);
  for (const auto& [name, sampler] : manifest.samplers) used.insert(sampler.file);
  for (const auto& [name, graph] : manifest.graphs) {
    used.insert(graph.file);
    if (!graph.weights) continue;
    used.insert(*graph.weights);
    if (folder_of(*graph.weights) != folder_of(graph.file)) {
      throw RecordError("graphs." + name + ".weights",
                        "the weights of graph " + quote(name) + " do not lie beside it");
    }
  }
  for (const std::string& file : used) {
    if (!manifest.files.contains(file)) {
      throw RecordError("files", "file " + quote(file) + " is used but not listed under files");
    }
  }
}

// The graph that reads what is to be generated.
std::string prompt_encoder(const Manifest& manifest) {
  return manifest.graphs.contains("image_encoder") ? "image_encoder" : "text_encoder";
}

bool has_row(const TensorSpec& tensor, std::int64_t size) {
  return tensor.shape.size() == 2 && tensor.shape[1].size == size;
}

std::string not_listed(const char* kind, const std::string& name) {
  return std::string("is of ") + kind + " " + quote(name) + ", which is not listed";
}

// What is wrong with where an input comes from, or "".
class OriginFault {
 public:
  OriginFault(const Manifest& manifest, const InputSpec& tensor)
      : manifest_(manifest), tensor_(tensor) {}

  std::string operator()(const FromTokens& origin) const { return tokens(origin.tokenizer); }
  std::string operator()(const FromMask& origin) const { return tokens(origin.tokenizer); }

  std::string operator()(const FromParameter& origin) const {
    const Parameter* parameter = manifest_.parameters.find(origin.parameter);
    if (parameter == nullptr) return not_listed("parameter", origin.parameter);
    const ParameterType type = parameter->type;
    if (type == ParameterType::choice || type == ParameterType::image) {
      return "cannot be parameter " + quote(origin.parameter) + ", which is of type " +
             name_of(type);
    }
    const bool fits = type == ParameterType::pair ? has_row(tensor_, 2)
                                                  : tensor_.shape.size() <= 1;
    return fits ? "" : "is not of the shape of parameter " + quote(origin.parameter);
  }

  std::string operator()(const FromFormula& origin) const {
    // How many numbers of each sample, and the parameters that they are made of.
    static const std::map<Formula, std::pair<std::int64_t, std::vector<const char*>>> kFormulas{
        {Formula::time_ids, {6, {"original_size", "crops_coords_top_left", "target_size"}}},
        {Formula::resolution, {2, {}}},
        {Formula::aspect_ratio, {1, {}}},
        {Formula::video_ids, {3, {"fps", "motion_bucket_id", "noise_aug_strength"}}},
        {Formula::frame_guidance_scale, {0, {"guidance_scale", "min_guidance_scale"}}},
    };
    const auto& [numbers, parameters] = kFormulas.at(origin.formula);
    const std::int64_t width = numbers ? numbers : manifest_.frames.value_or(0);
    if (width == 0 || !has_row(tensor_, width)) {
      return std::string("is not of the shape of ") + name_of(origin.formula);
    }
    for (const char* name : parameters) {
      if (!manifest_.parameters.contains(name)) return not_listed("parameter", name);
    }
    return {};
  }

  std::string operator()(const FromImage& origin) const {
    const Parameter* picture = manifest_.parameters.find(origin.image);
    if (picture == nullptr) return not_listed("parameter", origin.image);
    if (picture->type != ParameterType::image) {
      return "cannot be parameter " + quote(origin.image) + ", which is of type " +
             name_of(picture->type);
    }
    if (origin.noise && !manifest_.parameters.contains(*origin.noise)) {
      return not_listed("parameter", *origin.noise);
    }
    const auto& shape = tensor_.shape;
    return shape.size() == 4 && shape[3].size == 3 ? "" : "is no picture";
  }

  std::string operator()(const FromGraph& origin) const {
    const Graph* graph = manifest_.graphs.find(origin.graph);
    const std::vector<TensorSpec> outputs = graph ? graph->outputs : std::vector<TensorSpec>();
    // The last of that name, as a runtime would have it.
    const auto output =
        std::find_if(outputs.rbegin(), outputs.rend(), [&](const TensorSpec& candidate) {
          return candidate.name == origin.output;
        });
    if (output == outputs.rend()) {
      return "is output " + quote(origin.output) + " of graph " + quote(origin.graph) +
             ", which is not there";
    }
    std::vector<Dim> shape = output->shape;
    if (origin.graph == prompt_encoder(manifest_)) {
      const auto all = manifest_.chunks();
      const auto found = all.find(origin.output);
      const bool same = found == all.end() ? !origin.chunks : origin.chunks == found->second;
      if (!same) return "has other chunks of " + quote(origin.output) + " than another input";
    }
    if (origin.chunks) {
      if (origin.graph != prompt_encoder(manifest_)) {
        return "is of chunks of graph " + quote(origin.graph) + ", which reads no prompt";
      }
      const auto same = [&](const TensorSpec& other) { return other.name == origin.output; };
      const bool several = std::count_if(outputs.begin(), outputs.end(), same) > 1;
      if (several || shape.size() != 3 || shape[1].size == 0) {
        return "is of chunks of " + quote(origin.output) + ", which is not by token";
      }
      if (shape[1].size > std::numeric_limits<std::int64_t>::max() / *origin.chunks) {
        return "is of chunks of " + quote(origin.output) + ", which has too many tokens";
      }
      shape[1].size *= *origin.chunks;
    }
    return shape == tensor_.shape ? "" : "is not of the shape of " + quote(origin.output);
  }

  std::string operator()(const FromCache& origin) const {
    const Cache* cache = manifest_.caches.find(origin.cache);
    if (cache == nullptr) return not_listed("cache", origin.cache);
    const bool same = cache->dtype == tensor_.dtype && cache->shape == tensor_.shape;
    return same ? "" : "is not of the type and shape of cache " + quote(origin.cache);
  }

  std::string operator()(const FromLoop&) const { return {}; }

 private:
  std::string tokens(const std::string& name) const {
    const TokenizerSpec* tokenizer = manifest_.tokenizers.find(name);
    if (tokenizer == nullptr) return not_listed("tokenizer", name);
    const bool fits = has_row(tensor_, tokenizer->max_length);
    return fits ? "" : "is not of " + std::to_string(tokenizer->max_length) + " tokens";
  }

  const Manifest& manifest_;
  const InputSpec& tensor_;
};

void check_origins(const Manifest& manifest) {
  for (const auto& [name, graph] : manifest.graphs) {
    for (std::size_t index = 0; index < graph.inputs.size(); ++index) {
      const InputSpec& tensor = graph.inputs[index];
      const std::string fault = std::visit(OriginFault(manifest, tensor), tensor.origin);
      if (fault.empty()) continue;
      throw RecordError("graphs." + name + ".inputs." + std::to_string(index) + ".from",
                        "input " + quote(tensor.name) + " of graph " + quote(name) + " " + fault);
    }
  }
}

// Whether a parameter is a whole number with a default.
bool is_counter(const Parameter* parameter) {
  return parameter != nullptr && parameter->type == ParameterType::integer &&
         parameter->default_value &&
         std::holds_alternative<std::int64_t>(*parameter->default_value);
}

void check_methods(const Manifest& manifest) {
  for (const auto& [name, method] : manifest.methods) {
    for (const std::string& parameter : method.parameters) {
      if (is_counter(manifest.parameters.find(parameter))) continue;
      throw RecordError("methods." + name + ".parameters",
                        "it reads " + quote(parameter) + ", which is no whole number with a default");
    }
    for (const Guard& guard : method.rule) {
      for (const Comparison& comparison : guard.all) {
        if (!comparison.modulo) continue;
        const auto& min = manifest.parameters.find(*comparison.modulo)->min;
        if (min && to_double(*min) >= 1) continue;
        throw RecordError("methods." + name + ".rule",
                          "it divides by " + quote(*comparison.modulo) + ", which may be 0");
      }
    }
  }
}

void check_caches(const Manifest& manifest) {
  for (const auto& [name, cache] : manifest.caches) {
    bool written = false;
    for (const auto& [graph_name, graph] : manifest.graphs) {
      if (!manifest.is_phase(graph_name)) continue;
      for (const TensorSpec& tensor : graph.outputs) {
        written = written || (tensor.name == name && tensor.dtype == cache.dtype &&
                              tensor.shape == cache.shape);
      }
    }
    if (!written) throw RecordError("caches." + name, "no graph writes it as it is listed");
  }
}

void check_parameters(const Manifest& manifest) {
  for (const char* name : {"num_inference_steps", "scheduler"}) {
    const Parameter* parameter = manifest.parameters.find(name);
    if (parameter == nullptr || !parameter->default_value) {
      throw RecordError(std::string("parameters.") + name, "it has no default");
    }
  }
  // What every run has by these names, in some front end.
  static const std::set<std::string> kReserved{
      "prompt", "negative_prompt", "prompt_embeds", "negative_prompt_embeds", "seed", "num_images",
      "num_images_per_prompt", "height", "width", "latents", "output_type", "parameters", "steps",
      "deadline", "format", "progress", "preview", "hires", "hires_strength", "hires_steps",
      "hires_upscaler", "denoising_start", "denoising_end"};
  for (const auto& [name, parameter] : manifest.parameters) {
    if (kReserved.count(name) != 0) {
      throw RecordError("parameters." + name, "every run has something of that name");
    }
    if (!parameter.default_value) continue;
    if (const auto fault = fault_of(parameter, *parameter.default_value); !fault.empty()) {
      throw RecordError("parameters." + name + ".default", "it " + fault);
    }
  }
  const Parameter& scheduler = *manifest.parameters.find("scheduler");
  const std::set<std::string> choices(scheduler.choices.begin(), scheduler.choices.end());
  std::set<std::string> samplers;
  for (const auto& [name, sampler] : manifest.samplers) samplers.insert(name);
  if (choices != samplers) {
    throw RecordError("parameters.scheduler.choices", "they are not the samplers");
  }
  if (scheduler.type != ParameterType::choice) {
    throw RecordError("parameters.scheduler.type", "it must be a choice");
  }
  if (!is_counter(manifest.parameters.find("num_inference_steps"))) {
    throw RecordError("parameters.num_inference_steps.type", "it must be an integer");
  }
}

void check_tiles(const Manifest& manifest) {
  const std::int64_t latent = manifest.latent_downscale;
  for (const auto& [name, graph] : manifest.graphs) {
    if (!graph.tiles) continue;
    const auto [size, overlap] = *graph.tiles;
    if (name != "vae_encoder" && name != "vae_decoder") {
      throw RecordError("graphs." + name + ".tiles", "only graphs of the VAE have tiles");
    }
    if (size % latent != 0 || overlap % latent != 0 || overlap >= size) {
      throw RecordError("graphs." + name + ".tiles",
                        std::to_string(size) + " pixels that overlap by " +
                            std::to_string(overlap) + " are no tiles of latents of " +
                            std::to_string(latent) + " pixels");
    }
  }
}

// What weights and chunks of prompts need.
void check_syntax(const Manifest& manifest) {
  const Parameter* parameter = manifest.parameters.find("prompt_syntax");
  if (parameter == nullptr) return;
  const std::string field = "parameters.prompt_syntax";
  const auto known = [](const std::string& name) { return name == "plain" || name == "a1111"; };
  const auto& choices = parameter->choices;
  if (parameter->type != ParameterType::choice ||
      !std::all_of(choices.begin(), choices.end(), known)) {
    throw RecordError(field, "it is no syntax that is known");
  }
  const auto chunks = manifest.chunks();
  if (chunks.size() != 1) throw RecordError(field, "no one output has the prompt's tokens");
  std::int64_t width = 0;
  for (const TensorSpec& tensor : manifest.graph(prompt_encoder(manifest)).outputs) {
    if (tensor.name == chunks.begin()->first) width = tensor.shape.back().size;
  }
  using Columns = std::array<std::int64_t, 2>;
  std::vector<std::pair<Columns, std::string>> all;
  for (const auto& [name, tokenizer] : manifest.tokenizers) {
    all.emplace_back(tokenizer.columns.value_or(Columns{}), name);
  }
  std::stable_sort(all.begin(), all.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::int64_t last = 0;
  for (const auto& [columns, name] : all) {
    if (columns[0] != last || columns[1] <= last) {
      throw RecordError("tokenizers." + name + ".columns",
                        "they do not begin at " + std::to_string(last) + ", where others end");
    }
    if (manifest.tokenizers.find(name)->max_length < 3) {
      throw RecordError("tokenizers." + name + ".max_length",
                        "there is no room between start and end");
    }
    last = columns[1];
  }
  if (last != width) {
    throw RecordError("tokenizers", "their columns end at " + std::to_string(last) + ", not at " +
                                        std::to_string(width));
  }
}

}  // namespace

void check_references(const Manifest& manifest) {
  check_files(manifest);
  check_origins(manifest);
  check_tiles(manifest);
  check_methods(manifest);
  check_caches(manifest);
  check_parameters(manifest);
  check_syntax(manifest);
}

}  // namespace tgate
