// What the host writes for the images of a call, by the origins of the graphs' inputs.
#pragma once

#include <map>
#include <string>
#include <vector>

#include <tgate/manifest.hpp>

#include "call.hpp"

namespace tgate {

// The elements of a tensor as its buffer has them.
using Bytes = std::vector<char>;

// The inputs of graphs that a call's own values fill, by their buffers.
std::map<std::string, const InputSpec*> host_inputs(const Manifest& manifest,
                                                    const std::vector<std::string>& graphs);

// What the images `first`, `first + 1`, ... put into one of them. Throws Error, kind `request`,
// where a parameter has no value.
Bytes host_rows(const Manifest& manifest, const Call& call, std::size_t first, std::size_t batch,
                const InputSpec& tensor);

// The values of a parameter that the text encoder takes; 0 where it is of the other text.
Bytes encoder_rows(const Call& call, std::size_t first, std::size_t batch, const InputSpec& tensor,
                   bool negative);

// Floats in a tensor's type.
Bytes converted(const float* values, std::size_t count, DType dtype);

}  // namespace tgate
