// What a call asks for, and what it gives.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include <tgate/parameter.hpp>

namespace tgate {

// A host array in row-major order.
struct Tensor {
  std::vector<std::int64_t> shape;
  std::vector<float> data;
};

using Texts = std::vector<std::string>;  // UTF-8
// Token ids by tokenizer, one row a prompt, start and end tokens included; shorter rows are padded.
using TokenIds = std::map<std::string, std::vector<std::vector<std::int64_t>>>;
// What the text encoder would give, by its outputs' names [prompts, ...]; of those by token up to as
// many chunks as the bundle was built for.
using Embeds = std::map<std::string, Tensor>;
using Prompts = std::variant<Texts, TokenIds, Embeds>;

// What a callback learns after a step.
struct StepInfo {
  int step;                // index of the denoiser evaluation that has ended
  int evaluations;         // how many there are
  std::string_view phase;  // the graph that ran, such as full or gated
  float timestep;
  std::function<Tensor()> latents;  // copies the current sample [B,C,h,w]; waits for the device
};

// Return false to end the run: `Pipeline::operator()` then throws Error, kind `cancelled`.
using StepCallback = std::function<bool(const StepInfo&)>;

enum class Output { images, latents };

// Members that are left empty have the bundle's defaults. As in Python and in diffusers:
struct Request {
  Prompts prompt;                          // one image for each
  std::optional<Prompts> negative_prompt;  // one for all prompts, or one each
  std::optional<int> num_inference_steps;
  std::optional<int> gate_step;  // first step without cross-attention and guidance, 1 or more
  std::optional<int> sp_interval;
  std::optional<int> fi_interval;
  std::optional<int> warm_up;
  // Empty, one for all prompts, or one each; a prompt at 1 or less is run without guidance, and
  // its negative prompt is ignored.
  std::vector<double> guidance_scale;
  std::optional<double> guidance_rescale;
  std::optional<int> clip_skip;
  std::optional<std::string> prompt_syntax;  // how texts are read: plain, or a1111, with weights
  std::optional<std::string> scheduler;
  std::optional<std::uint64_t> seed;  // random when not given
  int num_images_per_prompt = 1;
  std::optional<int> height;
  std::optional<int> width;
  std::optional<std::array<int, 2>> original_size;          // SDXL: height, width
  std::optional<std::array<int, 2>> crops_coords_top_left;  // SDXL: top, left
  std::optional<std::array<int, 2>> target_size;            // SDXL: height, width
  // Any parameter of the bundle's table, `Manifest::parameters`, by name. A field above is another
  // way to set the one of its name: not both.
  std::map<std::string, ParameterValue> parameters;
  // Pictures that the bundle's graphs read, by parameter: [1,H,W,3] for all prompts, or
  // [prompts,H,W,3], in [0, 1]. Their size is that of the result.
  std::map<std::string, Tensor> images;
  std::optional<Tensor> latents;  // [B,C,h,w], unit variance, instead of a seed
  Output output = Output::images;
  StepCallback on_step_end;
};

// A call with the defaults filled in.
struct Settings {
  using Values = Named<std::vector<std::optional<Scalar>>>;

  // One value for each image of the bundle's parameters but pictures, in the order of its table;
  // none where there is no default.
  Values parameters;
  std::uint64_t seed;
  int height;
  int width;

  // The value of an image's parameter; none where the bundle lacks it or it has no default.
  std::optional<Scalar> value(std::string_view name, std::size_t image = 0) const;
};

struct StepTiming {
  std::string phase;
  double denoiser;
  double sampler;
};

// Seconds by stage and step.
struct Timings {
  double text_encoder = 0;
  std::vector<StepTiming> steps;
  double vae_decoder = 0;
  double total = 0;  // tokenizing to images on the host; without loading engines

  // Seconds that neither the denoiser, the text encoder nor the VAE ran: sampler included.
  double outside_engines() const;
};

struct Image {
  int width;
  int height;
  std::vector<std::uint8_t> rgb;  // [height, width, 3]
};

struct Result {
  std::vector<Image> images;  // with Output::images
  Tensor latents;             // with Output::latents, [B,C,h,w]
  Timings timings;
  Settings settings;
  std::vector<std::string> warnings;  // such as a prompt that was too long
};

}  // namespace tgate
