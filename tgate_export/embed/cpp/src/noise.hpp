#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace tgate {

// Unit-variance noise of one image of a call: engines/README.md, "Noise from a seed". `draw` is 0
// for the starting latents, and i + 1 for the noise of evaluation i.
std::vector<float> standard_normal(std::size_t count, std::uint64_t seed, std::uint64_t image,
                                   std::uint64_t draw = 0);

}  // namespace tgate
