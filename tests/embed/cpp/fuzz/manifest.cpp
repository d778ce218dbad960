// Any bytes as a manifest are read or refused by Error; a run of what is read is planned or refused.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include <tgate/error.hpp>
#include <tgate/manifest.hpp>

#include "binding_plan.hpp"
#include "call.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const tgate::Manifest manifest =
        tgate::parse_manifest({reinterpret_cast<const char*>(data), size}, "manifest.json");
    tgate::Request request;
    request.prompt = tgate::Texts{"a"};
    const tgate::Call call = tgate::make_call(manifest, request);
    tgate::plan_run(manifest, {manifest.batch.max, call.settings.height, call.settings.width,
                               {tgate::Phase::full, tgate::Phase::gated}, false});
  } catch (const tgate::Error&) {
  }
  return 0;
}
