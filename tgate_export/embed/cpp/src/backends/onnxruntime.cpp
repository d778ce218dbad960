// ONNX Runtime on the CPU, through its C API from a library that is loaded at run time: any
// version from that of the header on serves.
#include <dlfcn.h>

#include <cstdlib>
#include <map>
#include <mutex>

#include <onnxruntime_c_api.h>

#include "../bundle_files.hpp"
#include "../cpus.hpp"
#include "../text.hpp"
#include "host_memory.hpp"

namespace tgate {
namespace {

namespace fs = std::filesystem;

// The library's functions. It is never unloaded: its threads may outlive the last session.
const OrtApi& load_api(const Options& options) {
  const char* environment = std::getenv("TGATE_ONNXRUNTIME");
  std::vector<std::string> names;
  if (!options.onnxruntime_library.empty()) {
    names = {options.onnxruntime_library.string()};
  } else if (environment != nullptr && *environment != '\0') {
    names = {environment};
  } else {
    names = {"libonnxruntime.so.1", "libonnxruntime.so"};  // by the program's rpath, and the system
  }
  // Since 1.29 it reports how it is used, from when it is loaded on, and keeps ids in the user's
  // home folder. Who wants that sets the variable to 0.
  static std::once_flag quiet;
  std::call_once(quiet, [] { setenv("ORT_DISABLE_TELEMETRY", "1", 0); });
  std::string reason;
  void* library = nullptr;
  for (const std::string& name : names) {
    library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) break;
    if (reason.empty()) reason = one_line(dlerror());
  }
  const std::string remedy = "set TGATE_ONNXRUNTIME to a libonnxruntime.so of version 1." +
                             std::to_string(ORT_API_VERSION) + " or newer";
  if (library == nullptr) {
    throw Error(ErrorKind::backend, "onnxruntime cannot be loaded (" + reason + "): " + remedy);
  }
  const auto base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(library, "OrtGetApiBase"));
  if (base == nullptr) {
    throw Error(ErrorKind::backend, "the library is not onnxruntime's: " + remedy);
  }
  const OrtApi* api = base()->GetApi(ORT_API_VERSION);
  if (api == nullptr) {
    throw Error(ErrorKind::backend, std::string("onnxruntime ") + base()->GetVersionString() +
                                        " is too old: " + remedy);
  }
  return *api;
}

// An object of the library, released by the function that belongs to its type.
template <class T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

class OnnxRuntime : public Backend {
 public:
  OnnxRuntime(const Bundle& bundle, const Options& options)
      : Backend("onnxruntime:cpu"),
        bundle_(bundle),
        threads_(options.threads > 0 ? options.threads : cpu_quota()),
        check_hashes_(options.check_hashes),
        api_(load_api(options)),
        environment_(nullptr, api_.ReleaseEnv),
        host_(nullptr, api_.ReleaseMemoryInfo) {
    environment_ = own(api_.ReleaseEnv, [&](OrtEnv** env) {
      return api_.CreateEnv(ORT_LOGGING_LEVEL_ERROR, "tgate", env);
    });
    host_ = own(api_.ReleaseMemoryInfo, [&](OrtMemoryInfo** info) {
      return api_.CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, info);
    });
  }

  std::unique_ptr<Memory> allocate(const BindingPlan& plan) override {
    for (const Launch* launch : plan.launches()) load(launch->graph);
    return std::make_unique<HostMemory>(plan.buffers);
  }

  Execute prepare(const Launch& launch, Memory& memory) override {
    auto& host = dynamic_cast<HostMemory&>(memory);
    OrtSession* session = sessions_.at(launch.graph).get();
    const std::shared_ptr<OrtIoBinding> binding(
        own(api_.ReleaseIoBinding, [&](OrtIoBinding** out) {
          return api_.CreateIoBinding(session, out);
        }));
    // A binding keeps the values that it was given alive.
    for (const auto& [tensor, slot] : launch.inputs) {
      check(api_.BindInput(binding.get(), tensor.c_str(), value(host, slot).get()));
    }
    for (const auto& [tensor, slot] : launch.outputs) {
      check(api_.BindOutput(binding.get(), tensor.c_str(), value(host, slot).get()));
    }
    return [this, session, binding, graph = launch.graph] {
      check(api_.RunWithBinding(session, nullptr, binding.get()),
            "onnxruntime cannot run graph " + quote(graph));
    };
  }

 private:
  void check(OrtStatus* status, const std::string& what = "onnxruntime failed") const {
    if (status == nullptr) return;
    const std::string reason = one_line(api_.GetErrorMessage(status));
    api_.ReleaseStatus(status);
    throw Error(ErrorKind::backend, what + ": " + reason);
  }

  template <class T, class Create>
  Owned<T> own(void (*release)(T*), Create create,
               const std::string& what = "onnxruntime failed") const {
    T* object = nullptr;
    check(create(&object), what);
    return {object, release};
  }

  void load(const std::string& graph) {
    if (sessions_.count(graph)) return;
    const auto settings = own(api_.ReleaseSessionOptions, [&](OrtSessionOptions** out) {
      return api_.CreateSessionOptions(out);
    });
    check(api_.SetSessionLogSeverityLevel(settings.get(), ORT_LOGGING_LEVEL_ERROR));
    check(api_.SetIntraOpNumThreads(settings.get(), threads_));
    // Every session has workers of its own: they would go on spinning in the next one's way.
    check(api_.AddSessionConfigEntry(settings.get(), "session.force_spinning_stop", "1"));
    // Another format of its own could be hidden in a model that was checked as ONNX.
    check(api_.AddSessionConfigEntry(settings.get(), "session.load_model_format", "ONNX"));
    const Graph& record = bundle_.manifest.graph(graph);
    const std::string model = read_graph(bundle_, graph, check_hashes_);
    check(api_.AddSessionConfigEntry(settings.get(),
                                     "session.model_external_initializers_file_folder_path",
                                     bundle_.file(record.file).parent_path().c_str()));
    auto session = own(
        api_.ReleaseSession,
        [&](OrtSession** out) {
          return api_.CreateSessionFromArray(environment_.get(), model.data(), model.size(),
                                             settings.get(), out);
        },
        "onnxruntime cannot load graph " + quote(graph));
    if (record.weights) check_unchanged(bundle_, *record.weights);  // nor while they were read
    sessions_.emplace(graph, std::move(session));
  }

  Owned<OrtValue> value(const HostMemory& memory, const Slot& slot) const {
    const BufferSpec& spec = memory.spec(slot);
    const auto type = spec.dtype == DType::int64     ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64
                      : spec.dtype == DType::float16 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16
                                                     : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    return own(api_.ReleaseValue, [&](OrtValue** out) {
      return api_.CreateTensorWithDataAsOrtValue(host_.get(), memory.address(slot),
                                                 spec.row_bytes(), spec.shape.data(),
                                                 spec.shape.size(), type, out);
    });
  }

  const Bundle& bundle_;
  const int threads_;
  const bool check_hashes_;
  const OrtApi& api_;
  Owned<OrtEnv> environment_;
  Owned<OrtMemoryInfo> host_;
  std::map<std::string, Owned<OrtSession>> sessions_;
};

}  // namespace

std::unique_ptr<Backend> make_onnxruntime(const Bundle& bundle, const Options& options) {
  return std::make_unique<OnnxRuntime>(bundle, options);
}

}  // namespace tgate
