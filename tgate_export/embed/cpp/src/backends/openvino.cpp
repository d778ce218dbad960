// OpenVINO on the CPU: the bundle's ONNX graphs in fp32 or, where the CPU has it, bf16.
#include <algorithm>
#include <future>
#include <map>
#include <optional>

#include <openvino/openvino.hpp>

#include "../python_text.hpp"
#include "host_memory.hpp"

namespace tgate {
namespace {

constexpr const char* kDevice = "CPU";

using Shapes = std::map<std::string, Shape>;  // of a graph's inputs

// Turns OpenVINO's exceptions into ours.
template <class Function>
auto guarded(const std::string& what, Function function) {
  try {
    return function();
  } catch (const ov::Exception& error) {
    throw Error(ErrorKind::backend, what + ": " + one_line(error.what()));
  }
}

ov::element::Type type_of(DType dtype) {
  switch (dtype) {
    case DType::int64: return ov::element::i64;
    case DType::float16: return ov::element::f16;
    case DType::float32: break;
  }
  return ov::element::f32;
}

ov::Tensor tensor(const HostMemory& memory, const Slot& slot) {
  const BufferSpec& spec = memory.spec(slot);
  return {type_of(spec.dtype), ov::Shape(spec.shape.begin(), spec.shape.end()),
          memory.address(slot)};
}

class OpenVino : public Backend {
 public:
  OpenVino(const Bundle& bundle, const Options& options)
      : Backend(options.backend == "openvino:bf16" ? "openvino:bf16" : "openvino"),
        bundle_(bundle),
        core_(guarded("openvino failed", [] { return ov::Core(); })) {
    const bool bf16 = name() == "openvino:bf16";
    guarded("openvino failed", [&] {
      const auto capabilities = core_.get_property(kDevice, ov::device::capabilities);
      // Asked for bf16, a CPU without it computes in fp32 and says nothing.
      if (bf16 && std::find(capabilities.begin(), capabilities.end(), "BF16") == capabilities.end()) {
        throw Error(ErrorKind::backend,
                    "this CPU has no bf16 arithmetic (AMX or AVX-512): use --backend openvino");
      }
    });
    properties_ = {
        ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
        // By default it is bf16 wherever the CPU is faster with it.
        ov::hint::inference_precision(bf16 ? ov::element::bf16 : ov::element::f32),
    };
    if (options.threads > 0) properties_.insert(ov::inference_num_threads(options.threads));
  }

  std::unique_ptr<Memory> allocate(const BindingPlan& plan) override {
    std::map<std::string, Shapes> wanted;
    for (const Launch* launch : plan.launches()) {
      for (const auto& [tensor, slot] : launch->inputs) {
        wanted[launch->graph][tensor] = plan.buffers.at(slot.buffer).shape;
      }
    }
    // A good part of compiling is single-threaded.
    std::map<std::string, std::future<Compiled>> loading;
    for (const auto& [graph, shapes] : wanted) {
      // Compiled for the shapes of the first run, which is the fastest, and then for all shapes.
      std::optional<Shapes> only = shapes;
      if (const auto found = compiled_.find(graph); found != compiled_.end()) {
        if (!found->second.shapes || found->second.shapes == shapes) continue;
        compiled_.erase(found);  // free it first
        only.reset();
      }
      loading[graph] = std::async(std::launch::async, [this, graph = graph, only] {
        return Compiled{compile(graph, only), only};
      });
    }
    for (auto& [graph, model] : loading) compiled_[graph] = model.get();
    return std::make_unique<HostMemory>(plan.buffers);
  }

  Execute prepare(const Launch& launch, Memory& memory) override {
    const auto& host = dynamic_cast<HostMemory&>(memory);
    auto request = guarded("openvino failed", [&] {
      ov::InferRequest made = compiled_.at(launch.graph).model.create_infer_request();
      for (const Bound* bound : {&launch.inputs, &launch.outputs}) {
        for (const auto& [name, slot] : *bound) made.set_tensor(name, tensor(host, slot));
      }
      return made;
    });
    return [request, graph = launch.graph]() mutable {
      guarded("openvino cannot run graph " + repr(graph), [&] { request.infer(); });
    };
  }

 private:
  struct Compiled {
    ov::CompiledModel model;
    std::optional<Shapes> shapes;  // what it is for; none: all shapes
  };

  ov::CompiledModel compile(const std::string& graph, const std::optional<Shapes>& only) {
    return guarded("openvino cannot load graph " + repr(graph), [&] {
      const auto model =
          core_.read_model(bundle_.file(bundle_.manifest.graph(graph).file).string());
      if (only) {
        std::map<std::string, ov::PartialShape> shapes;
        for (const auto& [tensor, shape] : *only) {
          shapes[tensor] = ov::PartialShape(std::vector<ov::Dimension>(shape.begin(), shape.end()));
        }
        model->reshape(shapes);
      }
      return core_.compile_model(model, kDevice, properties_);
    });
  }

  const Bundle& bundle_;
  ov::Core core_;
  ov::AnyMap properties_;
  std::map<std::string, Compiled> compiled_;
};

}  // namespace

std::unique_ptr<Backend> make_openvino(const Bundle& bundle, const Options& options) {
  return std::make_unique<OpenVino>(bundle, options);
}

}  // namespace tgate
