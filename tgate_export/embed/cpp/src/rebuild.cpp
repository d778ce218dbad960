#include "rebuild.hpp"

#include <algorithm>

#include <tgate/error.hpp>

#include "parameters.hpp"
#include "text.hpp"

namespace tgate {
namespace {

std::string size_text(const Manifest& manifest) {
  const Range& width = manifest.width;
  const Range& height = manifest.height;
  const auto pair = [](std::int64_t w, std::int64_t h) {
    return std::to_string(w) + "x" + std::to_string(h);
  };
  const std::string usual = pair(width.opt, height.opt);
  if (width.min == width.max && height.min == height.max) return usual;
  return join({pair(width.min, height.min), usual, pair(width.max, height.max)}, ":");
}

std::string option_of(std::string name) {
  std::replace(name.begin(), name.end(), '_', '-');
  return name;
}

}  // namespace

std::string rebuild_command(const Bundle& bundle, const BuildOptions& changes) {
  const Manifest& manifest = bundle.manifest;
  BuildOptions options{{"model", manifest.source_model}};
  if (!manifest.source_config.empty()) options.emplace_back("config", manifest.source_config);
  if (!manifest.source_vae.empty()) options.emplace_back("vae", manifest.source_vae);
  for (const AppliedLora& lora : manifest.source_loras) {
    options.emplace_back("lora", lora.file + ":" + text_of(lora.scale));
  }
  for (const AddedEmbedding& embedding : manifest.source_embeddings) {
    options.emplace_back("embedding", embedding.file + ":" + embedding.token);
  }
  options.emplace_back("weights", manifest.source_kind == "random" ? "random" : "pretrained");
  options.emplace_back("precision", manifest.precision);
  options.emplace_back("size", size_text(manifest));
  // Without a batch, graphs take the default range and plans a single image.
  if (str(manifest.batch) != "1:1:8") options.emplace_back("batch", str(manifest.batch));
  for (const std::string& name : manifest.method().parameters) {
    options.emplace_back(option_of(name), text_of(*manifest.parameters.find(name)->default_value));
  }
  for (const char* name : {"cache_blend", "guidance_carry"}) {  // their defaults are set by a build
    if (const Parameter* number = manifest.parameters.find(name)) {
      options.emplace_back(option_of(name), text_of(*number->default_value));
    }
  }
  options.emplace_back("out", bundle.path.string());
  if (manifest.guidance == "none") options.emplace_back("guidance", "none");
  if (manifest.graphs.contains("vae_encoder")) options.emplace_back("image-to-image", "");
  // Where it is not the default for the bundle's size, as Python's `default_tile`.
  const std::int64_t usual = std::max(manifest.height.max, manifest.width.max) > 1024 ? 512 : 0;
  const Graph* decoder = manifest.graphs.find("vae_decoder");
  const std::int64_t tile = decoder != nullptr && decoder->tiles ? decoder->tiles->size : 0;
  if (tile != usual) options.emplace_back("vae-tile", std::to_string(tile));
  if (const std::int64_t chunks = manifest.prompt_chunks(); chunks > 1) {
    options.emplace_back("prompt-chunks", std::to_string(chunks));
  }
  const Parameter* syntax = manifest.parameters.find("prompt_syntax");
  if (syntax != nullptr && syntax->default_value == Scalar("a1111")) {
    options.emplace_back("prompt-syntax", "a1111");
  }
  for (const auto& [name, value] : changes) {
    const auto same = std::find_if(options.begin(), options.end(), [&, &wanted = name](
                                       const auto& option) { return option.first == wanted; });
    if (same != options.end()) {
      same->second = value;
    } else {
      options.emplace_back(name, value);
    }
  }
  std::vector<std::string> words{"tgate-export", "build"};
  for (const auto& [name, value] : options) {
    words.push_back("--" + name);
    if (name != "image-to-image") words.push_back(value);
  }
  return shell_join(words);
}

void check_graphs(const Bundle& bundle, const std::vector<const Guard*>& steps,
                  const std::map<std::string, std::int64_t>& values) {
  std::map<std::string, std::int64_t> lacking;
  for (const Guard* step : steps) {
    if (bundle.manifest.graphs.contains(step->phase)) continue;
    bool by_interval = false;
    for (const Comparison& comparison : step->all) {
      if (!comparison.modulo) continue;
      lacking[*comparison.modulo] = values.at(*comparison.modulo);
      by_interval = true;
    }
    if (!by_interval) bundle.manifest.graph(step->phase);  // says that there is none
  }
  if (lacking.empty()) return;
  BuildOptions options;
  std::vector<std::string> given;
  for (const std::string& name : bundle.manifest.method().parameters) {
    const auto found = lacking.find(name);
    if (found == lacking.end()) continue;
    const std::string value = std::to_string(found->second);
    given.push_back(name + " " + value);
    options.emplace_back(option_of(name), value);
  }
  throw Error(ErrorKind::request,
              join(given, " and ") +
                  ": this bundle was built without the graphs of steps in between; build it with "
                  "them: " +
                  rebuild_command(bundle, options),
              lacking.begin()->first);
}

}  // namespace tgate
