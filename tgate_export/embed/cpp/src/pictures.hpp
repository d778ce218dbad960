// Pictures that a call brings, checked before it runs.
#pragma once

#include <map>
#include <optional>
#include <string>

#include <tgate/manifest.hpp>
#include <tgate/request.hpp>

namespace tgate {

// The size of a run: what a caller asks for, and what its pictures have.
struct Sides {
  std::optional<int> height;
  std::optional<int> width;
};

// A picture for each prompt [prompts,H,W,3], by parameter; `sides` become theirs. Throws Error,
// kind `request`.
std::map<std::string, Tensor> check_pictures(const Manifest& manifest,
                                             const std::map<std::string, Tensor>& given,
                                             std::size_t prompts, Sides& sides);

}  // namespace tgate
