#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace tgate {

// How many elements a shape has; none where a side is not positive or they are more than 2^48, far
// below what a size_t holds, so that bytes and rows fit, too.
inline std::optional<std::size_t> elements_of(const std::vector<std::int64_t>& shape) {
  std::size_t count = 1;
  for (const std::int64_t side : shape) {
    if (side <= 0 || count > (std::size_t{1} << 48) / static_cast<std::size_t>(side)) {
      return std::nullopt;
    }
    count *= static_cast<std::size_t>(side);
  }
  return count;
}

}  // namespace tgate
