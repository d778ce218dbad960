#include <algorithm>

#include "../plans.hpp"
#include "../text.hpp"
#include "backend.hpp"

namespace tgate {
namespace {

using Make = std::unique_ptr<Backend> (*)(const Bundle&, const Options&);

struct Candidate {
  const char* name;
  Make make;  // null when it was not compiled in
  bool plans;  // runs the bundle's plans instead of its graphs
};

#ifdef TGATE_WITH_TENSORRT
constexpr Make kTensorRT = make_tensorrt;
#else
constexpr Make kTensorRT = nullptr;
#endif
#ifdef TGATE_WITH_OPENVINO
constexpr Make kOpenVINO = make_openvino;
#else
constexpr Make kOpenVINO = nullptr;
#endif
#ifdef TGATE_WITH_ONNXRUNTIME
constexpr Make kOnnxRuntime = make_onnxruntime;
#else
constexpr Make kOnnxRuntime = nullptr;
#endif
// A program has one of the two TensorRTs: their libraries export the same names.
#ifdef TGATE_TENSORRT_RTX
constexpr const char* kLibrary = "tensorrt-rtx";
constexpr const char* kOtherLibrary = "tensorrt";
#else
constexpr const char* kLibrary = "tensorrt";
constexpr const char* kOtherLibrary = "tensorrt-rtx";
#endif

// Fastest first.
constexpr Candidate kCandidates[] = {
    {kLibrary, kTensorRT, true},
    {kOtherLibrary, nullptr, true},
    {"openvino", kOpenVINO, false},
    {"onnxruntime", kOnnxRuntime, false},
};

Selected fastest(const Bundle& bundle, const Options& options) {
  std::vector<std::string> passed;
  std::string last;
  std::vector<std::string> libraries;
  for (const PlanSet& set : check_plan_sets(bundle, false)) libraries.push_back(set.key().library);
  for (const Candidate& candidate : kCandidates) {
    const bool built = std::find(libraries.begin(), libraries.end(), candidate.name) !=
                       libraries.end();
    if (candidate.make == nullptr || (candidate.plans && !built)) continue;
    try {
      Selected selected{candidate.make(bundle, options), "the fastest that works here"};
      if (!passed.empty()) selected.reason += " (" + join(passed, "; ") + ")";
      return selected;
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::backend) throw;
      last = error.what();
      passed.push_back(std::string(candidate.name) + ": " + last);
    }
  }
  throw Error(ErrorKind::backend,
              last.empty() ? "this program was compiled without any backend: give CMake the "
                             "headers of one, see docs/embed-cpp.md"
                           : last);
}

}  // namespace

Selected select_backend(const Bundle& bundle, const Options& options) {
  if (options.backend == "auto") return fastest(bundle, options);
  // A device and a precision have names of their own, as in Python.
  const std::string wanted = options.backend == "onnxruntime:cpu" ? "onnxruntime"
                             : options.backend == "openvino:bf16" ? "openvino"
                                                                  : options.backend;
  std::vector<std::string> names{"auto"};
  for (const Candidate& candidate : kCandidates) {
    if (wanted == candidate.name) {
      if (candidate.make == nullptr) {
        throw Error(ErrorKind::backend, "this program was compiled without " + wanted +
                                            ": see docs/embed-cpp.md for what it needs");
      }
      return {candidate.make(bundle, options), "asked for by name"};
    }
    names.emplace_back(candidate.name);
  }
  throw Error(ErrorKind::request, "unknown backend " + quote(options.backend) +
                                      ": choose one of " + join(names));
}

}  // namespace tgate
