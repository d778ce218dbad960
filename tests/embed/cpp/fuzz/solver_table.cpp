// Any bytes as a solver table are read or refused by Error.
#include <cstddef>
#include <cstdint>

#include <tgate/error.hpp>

#include "solver_table.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const tgate::SolverTable table =
        tgate::parse_solver_table({reinterpret_cast<const char*>(data), size}, "ddim.json");
    table.for_steps(2).draws_noise();
  } catch (const tgate::Error&) {
  }
  return 0;
}
