#include "call.hpp"

#include <algorithm>
#include <cmath>
#include <random>
#include <stdexcept>

#include <tgate/error.hpp>

#include "binding_plan.hpp"
#include "counts.hpp"
#include "parameters.hpp"
#include "pictures.hpp"
#include "prompts.hpp"
#include "text.hpp"

namespace tgate {
namespace {

[[noreturn]] void refuse(const std::string& argument, const std::string& message) {
  throw Error(ErrorKind::request, message, argument);
}

void check_steps(const Manifest& manifest, const Call& call) {
  const auto steps = std::get<std::int64_t>(*call.settings.value("num_inference_steps"));
  const std::int64_t most = manifest.samplers.find(call.scheduler())->max_steps;
  if (steps < 1 || steps > most) {
    refuse("num_inference_steps", "num_inference_steps must be 1 to " + std::to_string(most) +
                                      ", got " + std::to_string(steps));
  }
}

// The prompt encoder does not run for embeddings: what it is given besides the text has no effect.
void check_encoder_parameters(const Manifest& manifest, const Given& given,
                              const Settings::Values& values) {
  for (const InputSpec& input : manifest.graph(kPromptEncoder).inputs) {
    const auto* origin = std::get_if<FromParameter>(&input.origin);
    if (origin == nullptr || origin->of == Of::negative_prompt) continue;
    const std::string& name = origin->parameter;
    if (given.count(name) == 0) continue;
    for (const std::optional<Scalar>& value : *values.find(name)) {
      if (!value) continue;
      const bool pair = std::holds_alternative<std::array<int, 2>>(*value);
      if (!pair && to_double(*value) == 0) continue;
      refuse(name, name + " " + text_of(*value) + " has no effect on prompt_embeds: leave it out");
    }
  }
}

// Texts alone have a syntax.
void check_syntax(const Request& request, const Given& given, const Call& call) {
  const auto& values = call.settings.parameters;
  check_syntax(values, call.prompts, "prompt");
  if (call.negatives) check_syntax(values, *call.negatives, "negative_prompt");
  const bool reads_text =
      std::holds_alternative<Texts>(request.prompt) ||
      (request.negative_prompt && std::holds_alternative<Texts>(*request.negative_prompt));
  if (reads_text || given.count(kSyntax) == 0 || !reads_a1111(values)) return;
  const bool embeds = std::holds_alternative<Embeds>(request.prompt);
  refuse(kSyntax, kSyntax + " a1111 has no effect on " +
                      (embeds ? "prompt_embeds" : "token ids") + ": leave it out");
}

// Nothing is noised that no image is given for.
void check_strength(const Given& given, Settings::Values& values) {
  if (given.count("strength") > 0) {
    refuse("strength", "strength has no effect without an image: leave it out");
  }
  for (auto& [name, each] : values) {
    if (name == "strength") each.assign(each.size(), std::nullopt);
  }
}

// Every image has the values of its prompt.
Settings::Values repeat(const Settings::Values& values, int times) {
  Settings::Values repeated;
  for (const auto& [name, each] : values) {
    std::vector<std::optional<Scalar>> copies;
    for (const auto& value : each) {
      copies.insert(copies.end(), static_cast<std::size_t>(times), value);
    }
    repeated.add(name, std::move(copies));
  }
  return repeated;
}

int side(const char* name, std::optional<int> value, const Range& allowed, std::int64_t multiple) {
  if (!value) return static_cast<int>(allowed.opt);
  const std::string given = std::string(name) + " " + std::to_string(*value);
  if (!allowed.contains(*value)) {
    refuse(name, given + " does not fit: this bundle was built for " + name + " " + str(allowed));
  }
  if (*value % multiple) {
    const std::int64_t below = *value / multiple * multiple;
    refuse(name, given + " is not a multiple of " + std::to_string(multiple) + ": try " +
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
    refuse("num_images_per_prompt",
           "a call makes " + std::to_string(kMost) +
               " images at most: give fewer prompts, or a smaller num_images_per_prompt");
  }
  const std::int64_t rest = images % manifest.batch.max;  // images of the last call
  if (0 < rest && rest < manifest.batch.min) {
    refuse("num_images_per_prompt",
           std::to_string(images) + " image(s) cannot be split into batches of " +
               str(manifest.batch) + ", which this bundle was built for: ask for " +
               std::to_string(images - rest + manifest.batch.min) + " in all");
  }
  return static_cast<int>(images);
}

void check_latents(const Manifest& manifest, const Call& call) {
  if (!call.latents) return;
  const std::vector<std::int64_t> shape{call.images, manifest.latent_channels,
                                        call.settings.height / manifest.latent_downscale,
                                        call.settings.width / manifest.latent_downscale};
  if (call.latents->shape != shape || elements_of(shape) != call.latents->data.size()) {
    refuse("latents", "latents have shape " + shape_text(call.latents->shape) + ", expected " +
                          shape_text(shape) + " for " + std::to_string(call.images) +
                          " image(s) of " + std::to_string(call.settings.width) + "x" +
                          std::to_string(call.settings.height));
  }
  for (const float value : call.latents->data) {
    if (!std::isfinite(value)) refuse("latents", "latents hold values that are not finite");
  }
}

// Whether none of the prompts is guided.
bool none_guided(const Manifest& manifest, const Call& call, std::size_t prompts) {
  for (std::size_t prompt = 0; prompt < prompts; ++prompt) {
    if (!by_prompt_alone(manifest, call.guidance_scale(prompt))) return false;
  }
  return true;
}

}  // namespace

std::optional<Scalar> Settings::value(std::string_view name, std::size_t image) const {
  const auto* each = parameters.find(name);
  return each != nullptr && image < each->size() ? (*each)[image] : std::nullopt;
}

int Call::num_inference_steps() const {
  return static_cast<int>(std::get<std::int64_t>(*settings.value("num_inference_steps")));
}

const std::string& Call::scheduler() const {
  return std::get<std::string>(*settings.parameters.find("scheduler")->front());
}

double Call::guidance_scale(std::size_t image) const {
  const auto scale = settings.value("guidance_scale", image);
  const bool number = scale && !std::holds_alternative<std::string>(*scale) &&
                      !std::holds_alternative<std::array<int, 2>>(*scale);
  return number ? to_double(*scale) : 1.0;
}

bool by_prompt_alone(const Manifest& manifest, double scale) {
  return scale <= 1 && manifest.takes_negative();
}

Call make_call(const Manifest& manifest, const Request& request) {
  Call call;
  Settings& settings = call.settings;
  call.prompts = check_prompts(manifest, request.prompt);
  const std::size_t prompts = count(call.prompts);
  call.negatives = check_negatives(manifest, request.negative_prompt, prompts);
  const int each = call.images_per_prompt = request.num_images_per_prompt;
  if (each < 1) {
    refuse("num_images_per_prompt",
           "num_images_per_prompt must be at least 1, got " + std::to_string(each));
  }
  call.images = images_of(manifest, prompts, each);
  const Given given = given_parameters(request);
  settings.parameters = parameter_values(manifest, given, prompts);
  check_syntax(request, given, call);
  if (std::holds_alternative<Embeds>(request.prompt)) {
    check_encoder_parameters(manifest, given, settings.parameters);
  }
  check_steps(manifest, call);
  check_strength(given, settings.parameters);
  call.method = method_values(manifest, given, call.num_inference_steps());
  for (auto& [name, values] : settings.parameters) {
    const auto value = call.method.find(name);
    if (value != call.method.end()) values.assign(values.size(), Scalar(value->second));
  }
  if (none_guided(manifest, call, prompts)) call.negatives.reset();  // ignored
  settings.seed = request.seed ? *request.seed : std::random_device()();
  Sides sides{request.height, request.width};
  call.pictures = check_pictures(manifest, request.images, prompts, sides);
  settings.height = side("height", sides.height, manifest.height, manifest.size_multiple);
  settings.width = side("width", sides.width, manifest.width, manifest.size_multiple);
  settings.parameters = repeat(settings.parameters, each);
  call.prompts = repeat(call.prompts, static_cast<std::size_t>(each));
  if (call.negatives) call.negatives = repeat(*call.negatives, static_cast<std::size_t>(each));
  call.latents = request.latents;
  check_latents(manifest, call);
  call.output = request.output;
  return call;
}

}  // namespace tgate
