// What one call asks for, completed with the bundle's defaults and checked before it runs.
#pragma once

#include <map>
#include <optional>
#include <string>

#include <tgate/manifest.hpp>
#include <tgate/request.hpp>

namespace tgate {

struct Call {
  Settings settings;
  int images;                              // in all
  Prompts prompts;                         // one for each image
  std::optional<Prompts> negatives;        // none: zeros, or nothing is guided
  std::map<std::string, Tensor> pictures;  // [prompts,H,W,3] in [0, 1], by parameter
  int images_per_prompt;
  std::map<std::string, std::int64_t> method;  // the values of the method's parameters
  std::optional<Tensor> latents;
  Output output;

  int num_inference_steps() const;
  const std::string& scheduler() const;
  double guidance_scale(std::size_t image) const;  // 1 where the bundle has no guidance
};

// Whether an image is made without guidance, as in diffusers: its prompt's conditions take the
// place of the negative ones, so that both passes of the graphs are the prompt's; the scale is 1.
bool by_prompt_alone(const Manifest& manifest, double scale);

// Throws Error, kind `request`: names the argument and what it may be.
Call make_call(const Manifest& manifest, const Request& request);

}  // namespace tgate
