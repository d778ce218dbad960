// What one call asks for, completed with the bundle's defaults and checked before it runs.
#pragma once

#include <array>
#include <optional>

#include <tgate/manifest.hpp>
#include <tgate/request.hpp>

namespace tgate {

struct Call {
  Settings settings;
  int images;                            // in all
  Prompts prompts;                       // one for each image
  std::optional<Prompts> negatives;      // none: zeros, or nothing is guided
  std::array<int, 6> told;               // SDXL: original size, crop, target size
  std::optional<Tensor> latents;
  Output output;
};

// Whether an image is drawn without guidance, as in diffusers: its prompt's conditions take the
// place of the negative ones, so that both passes of the graphs are the prompt's; the scale is 1.
bool by_prompt_alone(const Manifest& manifest, double scale);

// Throws Error, kind `request`: names the argument and what it may be.
Call make_call(const Manifest& manifest, const Request& request);

}  // namespace tgate
