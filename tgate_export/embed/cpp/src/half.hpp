#pragma once

#include <cstdint>
#include <cstring>

namespace tgate {

// From here on a float rounds to infinity as a half.
constexpr float kLargestHalf = 65520.0F;
constexpr float kLargestFiniteHalf = 65504.0F;

// A finite float below kLargestHalf as IEEE 754 half precision, rounded to nearest, ties to even.
inline std::uint16_t to_half(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000);
  bits &= 0x7fffffff;
  if (bits < 0x38800000) {  // subnormal in half precision: a multiple of 2^-24
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof magnitude);
    // Adding 0.5 leaves 23 bits of mantissa below 2^-1, that is, multiples of 2^-24.
    const float shifted = magnitude + 0.5F;
    std::uint32_t rounded;
    std::memcpy(&rounded, &shifted, sizeof rounded);
    return static_cast<std::uint16_t>(sign | (rounded - 0x3f000000));
  }
  const std::uint32_t odd = (bits >> 13) & 1;
  return static_cast<std::uint16_t>(sign | ((bits - 0x38000000 + 0xfff + odd) >> 13));
}

inline float from_half(std::uint16_t half) {
  const auto exponent = static_cast<std::uint32_t>(half >> 10 & 0x1f);
  const auto mantissa = static_cast<std::uint32_t>(half & 0x3ff);
  float value = static_cast<float>(mantissa) * 0x1p-24F;  // subnormal
  if (exponent != 0) {
    const std::uint32_t wide = exponent == 0x1f ? 0xff : exponent + 112;
    const std::uint32_t bits = wide << 23 | mantissa << 13;
    std::memcpy(&value, &bits, sizeof value);
  }
  return half & 0x8000 ? -value : value;
}

}  // namespace tgate
