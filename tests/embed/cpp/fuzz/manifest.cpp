// Any bytes as a manifest are read or refused by Error; a run of what is read is planned or refused.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <tgate/error.hpp>
#include <tgate/manifest.hpp>

#include "binding_plan.hpp"
#include "call.hpp"
#include "inputs.hpp"
#include "step_plan.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const tgate::Manifest manifest =
        tgate::parse_manifest({reinterpret_cast<const char*>(data), size}, "manifest.json");
    tgate::Request request;
    request.prompt = tgate::Texts{"a"};
    const tgate::Call call = tgate::make_call(manifest, request);
    std::vector<std::string> phases;
    for (const tgate::Guard* guard :
         tgate::plan_steps(manifest.method(), call.method, call.num_inference_steps(), 1)) {
      phases.push_back(guard->phase);
    }
    tgate::plan_run(manifest, {manifest.batch.max, call.settings.height, call.settings.width,
                               phases, false});
    for (const auto& [buffer, tensor] : tgate::host_inputs(manifest, phases)) {
      tgate::host_rows(manifest, call, 0, 1, *tensor);
    }
  } catch (const tgate::Error&) {
  }
  return 0;
}
