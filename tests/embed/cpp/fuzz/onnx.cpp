// Any bytes as a graph are checked or refused by Error.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include <tgate/error.hpp>

#include "onnx_check.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view model(reinterpret_cast<const char*>(data), size);
  try {
    tgate::check_onnx(model, tgate::WeightsFile{"x.weights", 100}, "x.onnx");
  } catch (const tgate::Error&) {
  }
  return 0;
}
