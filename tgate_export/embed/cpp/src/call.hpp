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
  std::optional<Prompts> negatives;      // none: zeros, or there is no guidance
  std::array<int, 6> told;               // SDXL: original size, crop, target size
  std::optional<Tensor> latents;
  Output output;
};

// Throws Error, kind `request`: names the argument and what it may be.
Call make_call(const Manifest& manifest, const Request& request);

}  // namespace tgate
