// Any bytes as a sampler table are read or refused by Error.
#include <cstddef>
#include <cstdint>

#include <tgate/error.hpp>

#include "sampler_table.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const tgate::SamplerTable table =
        tgate::parse_sampler_table({reinterpret_cast<const char*>(data), size}, "ddim.json");
    table.for_steps(2).draws_noise();
  } catch (const tgate::Error&) {
  }
  return 0;
}
