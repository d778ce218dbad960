#include "noise.hpp"

#include <array>
#include <cmath>

namespace tgate {
namespace {

using Words = std::array<std::uint64_t, 4>;

// The high and the low half of a product.
void multiply(std::uint64_t a, std::uint64_t b, std::uint64_t& high, std::uint64_t& low) {
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(a) * b;
  high = static_cast<std::uint64_t>(product >> 64);
  low = static_cast<std::uint64_t>(product);
}

// Philox4x64-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
Words philox(Words counter, std::uint64_t key0, std::uint64_t key1) {
  for (int round = 0; round < 10; ++round) {
    std::uint64_t high0, low0, high1, low1;
    multiply(0xD2E7470EE14C6C93, counter[0], high0, low0);
    multiply(0xCA5A826395121157, counter[2], high1, low1);
    counter = {high1 ^ counter[1] ^ key0, low1, high0 ^ counter[3] ^ key1, low0};
    key0 += 0x9E3779B97F4A7C15;
    key1 += 0xBB67AE8584CAA73B;
  }
  return counter;
}

double uniform(std::uint64_t word) {  // in (0, 1]
  return (static_cast<double>(word >> 11) + 1.0) * 0x1p-53;
}

}  // namespace

std::vector<float> standard_normal(std::size_t count, std::uint64_t seed, std::uint64_t image,
                                   std::uint64_t draw) {
  constexpr double kTwoPi = 6.283185307179586;
  std::vector<float> values;
  values.reserve(count + 4);
  for (std::uint64_t block = 1; values.size() < count; ++block) {
    const Words words = philox({block, draw, 0, 0}, seed + image, 0);
    for (const std::size_t i : {0U, 2U}) {
      const double radius = std::sqrt(-2.0 * std::log(uniform(words[i])));
      const double angle = kTwoPi * uniform(words[i + 1]);
      values.push_back(static_cast<float>(radius * std::cos(angle)));
      values.push_back(static_cast<float>(radius * std::sin(angle)));
    }
  }
  values.resize(count);
  return values;
}

}  // namespace tgate
