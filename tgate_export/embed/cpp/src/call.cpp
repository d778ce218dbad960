#include "call.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include <tgate/error.hpp>

#include "counts.hpp"
#include "prompts.hpp"
#include "python_text.hpp"
#include "step_plan.hpp"

namespace tgate {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw Error(ErrorKind::request, message); }

void set_schedule(const Manifest& manifest, const Request& request, Settings& settings) {
  const Defaults& defaults = manifest.defaults;
  const int default_warm_up = static_cast<int>(defaults.warm_up);
  settings.num_inference_steps =
      request.num_inference_steps.value_or(static_cast<int>(defaults.num_inference_steps));
  settings.sp_interval = request.sp_interval.value_or(static_cast<int>(defaults.sp_interval));
  settings.fi_interval = request.fi_interval.value_or(static_cast<int>(defaults.fi_interval));
  if (request.gate_step) {
    settings.gate_step = *request.gate_step;
  } else {
    // The default gate keeps its place when fewer or more steps are asked for.
    const double scaled = static_cast<double>(defaults.gate_step) * settings.num_inference_steps /
                          static_cast<double>(defaults.num_inference_steps);
    const double most = std::numeric_limits<int>::max();
    settings.gate_step = std::max({1, static_cast<int>(std::nearbyint(std::min(scaled, most))),
                                   request.warm_up.value_or(default_warm_up)});
  }
  settings.warm_up =
      request.warm_up.value_or(std::min(default_warm_up, std::max(settings.gate_step, 0)));
  const std::string fault = step_plan_fault(
      settings.gate_step, {settings.sp_interval, settings.fi_interval, settings.warm_up});
  if (!fault.empty()) refuse(fault);
}

std::vector<double> guidance_scales(const Manifest& manifest, std::vector<double> scales,
                                    std::size_t prompts) {
  const bool given = !scales.empty();
  if (!given) scales = {manifest.defaults.guidance_scale};
  for (const double scale : scales) {
    if (!std::isfinite(scale)) {
      refuse("guidance_scale must be a finite number, got " + repr(scale));
    }
    if (given && manifest.guidance == "none" && scale > 1) {
      refuse("guidance_scale " + repr(scale) +
             " has no effect: this bundle was built without guidance; leave it out");
    }
  }
  if (scales.size() != 1 && scales.size() != prompts) {
    refuse(std::to_string(scales.size()) + " guidance scales for " + std::to_string(prompts) +
           " prompts: give one, or one each");
  }
  if (scales.size() == 1) scales.assign(prompts, scales[0]);
  return scales;
}

double guidance_rescale(const Manifest& manifest, double value) {
  if (!(value >= 0 && value <= 1)) refuse("guidance_rescale must be 0 to 1, got " + repr(value));
  const auto& inputs = manifest.graph("full").inputs;
  const bool takes = std::any_of(inputs.begin(), inputs.end(), [](const TensorSpec& tensor) {
    return tensor.name == "guidance_rescale";
  });
  if (value != 0 && !takes) {
    const std::string why =
        manifest.guidance == "classifier-free"
            ? "guidance of a " + manifest.family + " bundle is never rescaled"
            : "this bundle was built without classifier-free guidance";
    refuse("guidance_rescale " + repr(value) + " has no effect: " + why + "; leave it out");
  }
  return value;
}

int clip_skip(const Manifest& manifest, int value, const Prompts& prompts) {
  const std::string skip = "clip_skip " + std::to_string(value);
  if (value != 0 && std::holds_alternative<Embeds>(prompts)) {
    refuse(skip + " has no effect on prompt_embeds: leave it out");
  }
  if (value > 0 && manifest.clip_skips == 0) {
    refuse(skip + " has no effect: a " + manifest.family +
           " bundle's text encoder cannot skip layers; leave it out");
  }
  if (value < 0 || value > manifest.clip_skips) {
    refuse("clip_skip must be 0 to " + std::to_string(manifest.clip_skips) + ", got " +
           std::to_string(value));
  }
  return value;
}

void check_sampler(const Manifest& manifest, const Settings& settings) {
  const SamplerSpec* sampler = manifest.samplers.find(settings.scheduler);
  if (sampler == nullptr) {
    std::vector<std::string> names;
    for (const auto& [name, spec] : manifest.samplers) names.push_back(name);
    refuse("unknown scheduler " + repr(settings.scheduler) + ": this bundle has " + join(names));
  }
  if (settings.num_inference_steps < 1 || settings.num_inference_steps > sampler->max_steps) {
    refuse("steps must be 1 to " + std::to_string(sampler->max_steps) + ", got " +
           std::to_string(settings.num_inference_steps));
  }
}

int side(const char* name, std::optional<int> value, const Range& allowed, std::int64_t multiple) {
  if (!value) return static_cast<int>(allowed.opt);
  const std::string given = std::string(name) + " " + std::to_string(*value);
  if (!allowed.contains(*value)) {
    refuse(given + " does not fit: this bundle was built for " + name + " " + str(allowed));
  }
  if (*value % multiple) {
    const std::int64_t below = *value / multiple * multiple;
    refuse(given + " is not a multiple of " + std::to_string(multiple) + ": try " +
           std::to_string(below ? below : multiple));
  }
  return *value;
}

int images_of(const Manifest& manifest, std::size_t prompts, int each) {
  // Every one of them has a copy of its prompt.
  constexpr std::int64_t kMost = 1 << 16;
  const std::int64_t images =
      prompts > kMost ? kMost + 1 : static_cast<std::int64_t>(prompts) * each;
  if (images > kMost) {
    refuse("a call draws " + std::to_string(kMost) +
           " images at most: give fewer prompts, or a smaller num_images");
  }
  const std::int64_t rest = images % manifest.batch.max;  // images of the last call
  if (0 < rest && rest < manifest.batch.min) {
    refuse(std::to_string(images) + " image(s) cannot be split into batches of " +
           str(manifest.batch) + ", which this bundle was built for: ask for " +
           std::to_string(images - rest + manifest.batch.min) + " in all");
  }
  return static_cast<int>(images);
}

std::array<int, 2> told(const Manifest& manifest, const char* name,
                        const std::optional<std::array<int, 2>>& value,
                        const std::array<int, 2>& otherwise) {
  if (!value) return otherwise;
  const bool is_told =
      std::any_of(manifest.conditioning.begin(), manifest.conditioning.end(),
                  [](const auto& entry) { return entry.second == "time_ids"; });
  if (!is_told) {
    refuse(std::string(name) + " is for SDXL: this bundle's family is " + manifest.family +
           ", which is not told it");
  }
  if ((*value)[0] < 0 || (*value)[1] < 0) {
    refuse(std::string(name) + " must be two whole numbers of pixels, got (" +
           std::to_string((*value)[0]) + ", " + std::to_string((*value)[1]) + ")");
  }
  return *value;
}

void check_latents(const Manifest& manifest, const Call& call) {
  if (!call.latents) return;
  const std::vector<std::int64_t> shape{call.images, manifest.latent_channels,
                                        call.settings.height / manifest.latent_downscale,
                                        call.settings.width / manifest.latent_downscale};
  if (call.latents->shape != shape || elements_of(shape) != call.latents->data.size()) {
    refuse("latents have shape " + repr(call.latents->shape) + ", expected " + repr(shape) +
           " for " + std::to_string(call.images) + " image(s) of " +
           std::to_string(call.settings.width) + "x" + std::to_string(call.settings.height));
  }
  for (const float value : call.latents->data) {
    if (!std::isfinite(value)) refuse("latents hold values that are not finite");
  }
}

}  // namespace

bool by_prompt_alone(const Manifest& manifest, double scale) {
  return manifest.guidance == "classifier-free" && scale <= 1;
}

// Checks in the order of tgate_export/runtime/request.py: of several faults, the first is named.
Call make_call(const Manifest& manifest, const Request& request) {
  Call call;
  Settings& settings = call.settings;
  call.prompts = check_prompts(manifest, request.prompt);
  const std::size_t prompts = count(call.prompts);
  call.negatives = check_negatives(manifest, request.negative_prompt, prompts);
  const int each = request.num_images_per_prompt;
  if (each < 1) refuse("num_images must be at least 1, got " + std::to_string(each));
  set_schedule(manifest, request, settings);
  const std::vector<double> scales = guidance_scales(manifest, request.guidance_scale, prompts);
  if (std::all_of(scales.begin(), scales.end(),
                  [&](double scale) { return by_prompt_alone(manifest, scale); })) {
    call.negatives.reset();  // ignored
  }
  settings.scheduler = request.scheduler.value_or(manifest.defaults.scheduler);
  check_sampler(manifest, settings);
  settings.seed = request.seed ? *request.seed : std::random_device()();
  settings.height = side("height", request.height, manifest.height, manifest.size_multiple);
  settings.width = side("width", request.width, manifest.width, manifest.size_multiple);
  call.images = images_of(manifest, prompts, each);
  call.prompts = repeat(call.prompts, static_cast<std::size_t>(each));
  if (call.negatives) call.negatives = repeat(*call.negatives, static_cast<std::size_t>(each));
  for (const double scale : scales) {
    settings.guidance_scales.insert(settings.guidance_scales.end(),
                                    static_cast<std::size_t>(each), scale);
  }
  settings.guidance_rescale = guidance_rescale(manifest, request.guidance_rescale);
  settings.clip_skip = clip_skip(manifest, request.clip_skip, request.prompt);
  const std::array<int, 2> size{settings.height, settings.width};
  const auto original = told(manifest, "original_size", request.original_size, size);
  const auto crop = told(manifest, "crops_coords_top_left", request.crops_coords_top_left, {0, 0});
  const auto target = told(manifest, "target_size", request.target_size, size);
  call.told = {original[0], original[1], crop[0], crop[1], target[0], target[1]};
  call.latents = request.latents;
  check_latents(manifest, call);
  call.output = request.output;
  return call;
}

}  // namespace tgate
