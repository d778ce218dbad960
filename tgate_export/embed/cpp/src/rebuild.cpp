#include "rebuild.hpp"

#include <algorithm>

#include <tgate/error.hpp>

#include "python_text.hpp"

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

}  // namespace

std::string rebuild_command(const Bundle& bundle, const BuildOptions& changes) {
  const Manifest& manifest = bundle.manifest;
  const Defaults& defaults = manifest.defaults;
  BuildOptions options{
      {"model", manifest.source_model},
      {"weights", manifest.source_kind == "random" ? "random" : "pretrained"},
      {"precision", manifest.precision},
      {"size", size_text(manifest)},
  };
  // Without a batch, graphs take the default range and plans a single image.
  if (str(manifest.batch) != "1:1:8") options.emplace_back("batch", str(manifest.batch));
  options.emplace_back("gate-step", std::to_string(defaults.gate_step));
  options.emplace_back("sp-interval", std::to_string(defaults.sp_interval));
  options.emplace_back("fi-interval", std::to_string(defaults.fi_interval));
  options.emplace_back("warm-up", std::to_string(defaults.warm_up));
  options.emplace_back("out", bundle.path.string());
  if (manifest.guidance == "none") options.emplace_back("guidance", "none");
  if (manifest.graphs.contains("vae_encoder")) options.emplace_back("image-to-image", "");
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

void check_graphs(const Bundle& bundle, const std::vector<Phase>& phases,
                  const Settings& settings) {
  BuildOptions lacking;
  std::vector<std::string> given;
  const auto check = [&](Phase phase, const char* setting, const char* option, int value) {
    const bool runs = std::find(phases.begin(), phases.end(), phase) != phases.end();
    if (!runs || bundle.manifest.graphs.contains(name_of(phase))) return;
    given.push_back(std::string(setting) + " " + std::to_string(value));
    lacking.emplace_back(option, std::to_string(value));
  };
  check(Phase::full_reuse, "sp_interval", "sp-interval", settings.sp_interval);
  check(Phase::gated_reuse, "fi_interval", "fi-interval", settings.fi_interval);
  if (lacking.empty()) return;
  throw Error(ErrorKind::request,
              join(given, " and ") +
                  ": this bundle was built without the graphs that reuse self-attention like "
                  "that: build it with them: " +
                  rebuild_command(bundle, lacking));
}

}  // namespace tgate
