// OpenVINO on the CPU: the bundle's ONNX graphs in fp32 or, where the CPU has it, bf16.
#include <algorithm>
#include <future>
#include <map>
#include <sstream>
#include <utility>

#include <openvino/frontend/manager.hpp>
#include <openvino/openvino.hpp>

#include "../bundle_files.hpp"
#include "../cpus.hpp"
#include "../text.hpp"
#include "host_memory.hpp"
#include "openvino_model.hpp"

namespace tgate {
namespace {

constexpr const char* kDevice = "CPU";

using Shapes = std::map<std::string, Shape>;   // of a graph's inputs
using Graphs = std::map<std::string, Shapes>;  // of several graphs

// One graph, or the graphs of one file of weights.
struct Compiled {
  Graphs graphs;           // what each was compiled for
  bool any_shape = false;  // whether they take all other shapes, too
  std::map<std::string, ov::CompiledModel> models;  // by graph; one and the same if joined
  std::map<std::string, ov::Tensor> idle;           // if joined, inputs for graphs that are not run
  bool apart = false;                               // whether joining them failed
  std::string warning;

  bool take(const Graphs& wanted) const {
    return std::all_of(wanted.begin(), wanted.end(), [&](const auto& entry) {
      const auto found = graphs.find(entry.first);
      return found != graphs.end() && (any_shape || found->second == entry.second);
    });
  }
  bool have_other_shapes(const Graphs& wanted) const {
    return std::any_of(wanted.begin(), wanted.end(), [&](const auto& entry) {
      const auto found = graphs.find(entry.first);
      return found != graphs.end() && found->second != entry.second;
    });
  }
};

// The line that says what is wrong: OpenVINO begins with where it noticed.
std::string reason_of(const ov::Exception& error) {
  std::istringstream text(error.what());
  for (std::string line; std::getline(text, line);) {
    const bool place = line.rfind("Exception from ", 0) == 0 || line.rfind("Check '", 0) == 0;
    if (!place && !one_line(line).empty()) return one_line(line);
  }
  return one_line(error.what());
}

// Turns OpenVINO's exceptions into ours.
template <class Function>
auto guarded(const std::string& what, Function function) {
  try {
    return function();
  } catch (const ov::Exception& error) {
    throw Error(ErrorKind::backend, what + ": " + reason_of(error));
  }
}

std::string cannot_load(const std::string& graph) {
  return "openvino cannot load graph " + quote(graph);
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
        join_weights_above_(options.join_weights_above),
        check_hashes_(options.check_hashes),
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
    const int threads = options.threads > 0 ? options.threads : cpu_quota();
    if (threads > 0) properties_.insert(ov::inference_num_threads(threads));
  }

  std::unique_ptr<Memory> allocate(const BindingPlan& plan) override {
    std::map<std::string, Graphs> wanted;  // by what they are compiled in
    for (const Launch* launch : plan.launches()) {
      Shapes& shapes = wanted[model_of(launch->graph)][launch->graph];
      for (const auto& [name, slot] : launch->inputs) {
        shapes[name] = plan.buffers.at(slot.buffer).shape;
      }
    }
    // A good part of compiling is single-threaded.
    std::vector<std::future<void>> loading;
    for (const auto& [name, graphs] : wanted) {
      loading.push_back(std::async(std::launch::async, &OpenVino::load, this,
                                   std::ref(compiled_[name]), std::cref(graphs)));
    }
    for (auto& done : loading) done.get();
    return std::make_unique<HostMemory>(plan.buffers);
  }

  Execute prepare(const Launch& launch, Memory& memory) override {
    const auto& host = dynamic_cast<HostMemory&>(memory);
    Compiled& compiled = compiled_.at(model_of(launch.graph));
    auto request = guarded("openvino failed", [&] {
      ov::InferRequest made = compiled.models.at(launch.graph).create_infer_request();
      const bool joined = !compiled.idle.empty();
      if (joined) {
        for (const auto& [name, tensor] : compiled.idle) made.set_tensor(name, tensor);
        for (const auto& [graph, shapes] : compiled.graphs) {
          ov::Tensor runs(ov::element::boolean, {});
          *runs.data<bool>() = graph == launch.graph;
          made.set_tensor(graph, runs);
        }
      }
      for (const Bound* bound : {&launch.inputs, &launch.outputs}) {
        for (const auto& [name, slot] : *bound) {
          made.set_tensor(joined ? tensor_name(launch.graph, name) : name, tensor(host, slot));
        }
      }
      return made;
    });
    return [request, graph = launch.graph]() mutable {
      guarded("openvino cannot run graph " + quote(graph), [&] { request.infer(); });
    };
  }

  std::vector<std::string> take_warnings() override {
    std::vector<std::string> taken;
    for (auto& [name, compiled] : compiled_) {
      if (!compiled.warning.empty()) taken.push_back(std::exchange(compiled.warning, {}));
    }
    return taken;
  }

 private:
  // A name for what the graph is compiled in, one model for each large file.
  std::string model_of(const std::string& graph) const {
    const auto& file = bundle_.manifest.graph(graph).weights;
    const bool large = file && bundle_.manifest.files.find(*file)->bytes > join_weights_above_;
    return large ? *file : graph;
  }

  // Compiles graphs, unless what was compiled takes them: for the shapes of their first run, which
  // is the fastest, and then for all shapes.
  void load(Compiled& compiled, const Graphs& wanted) {
    if (compiled.take(wanted)) return;
    const bool any_shape = compiled.any_shape || compiled.have_other_shapes(wanted);
    Graphs graphs = wanted;
    graphs.insert(compiled.graphs.begin(), compiled.graphs.end());
    const bool apart = compiled.apart;
    compiled = {};  // free the first; and what fails to load is not taken for loaded
    compiled.apart = apart;
    if (graphs.size() > 1 && !apart) load_joined(compiled, graphs, any_shape);
    if (compiled.models.empty()) {
      for (const auto& entry : graphs) {
        compiled.models[entry.first] = guarded(cannot_load(entry.first), [&] {
          return compile(read(entry.first, entry.second, any_shape));
        });
      }
    }
    compiled.any_shape = any_shape;
    compiled.graphs = std::move(graphs);
  }

  // Leaves a warning where OpenVINO cannot: it may compile more as a model than as a body.
  void load_joined(Compiled& compiled, const Graphs& graphs, bool any_shape) {
    std::map<std::string, std::shared_ptr<ov::Model>> models;
    for (const auto& entry : graphs) {
      models[entry.first] = guarded(cannot_load(entry.first), [&] {
        return read(entry.first, entry.second, any_shape);
      });
    }
    try {
      const ov::CompiledModel joined = compile(join_models(models));
      for (const auto& [graph, shapes] : graphs) {
        for (const auto& [name, shape] : shapes) {
          const std::string input = tensor_name(graph, name);
          compiled.idle[input] = {joined.input(input).get_element_type(),
                                  ov::Shape(shape.begin(), shape.end())};
        }
      }
      for (const auto& [graph, shapes] : graphs) compiled.models[graph] = joined;
    } catch (const ov::Exception& error) {
      std::vector<std::string> names;
      for (const auto& [graph, shapes] : graphs) names.push_back(graph);
      compiled.idle.clear();
      compiled.apart = true;
      compiled.warning = "openvino packs the weights of " + join(names, " and ") +
                         " apart, in more memory (" + reason_of(error) + ")";
    }
  }

  std::shared_ptr<ov::Model> read(const std::string& graph, const Shapes& inputs, bool any_shape) {
    const Graph& record = bundle_.manifest.graph(graph);
    std::istringstream bytes(read_graph(bundle_, graph, check_hashes_));
    // By its name: asked to find out, OpenVINO would take a model of any format. The path is where
    // it looks for the weights.
    const auto reader = ov::frontend::FrontEndManager().load_by_framework("onnx");
    auto model = reader->convert(reader->load(static_cast<std::istream*>(&bytes),
                                              bundle_.file(record.file).string()));
    if (record.weights) check_unchanged(bundle_, *record.weights);  // nor while they were read
    if (name() == "openvino:bf16") keep_sinusoids(*model);
    if (!any_shape) {
      std::map<std::string, ov::PartialShape> shapes;
      for (const auto& [name, shape] : inputs) {
        shapes[name] = ov::PartialShape(std::vector<ov::Dimension>(shape.begin(), shape.end()));
      }
      model->reshape(shapes);
    }
    return model;
  }

  ov::CompiledModel compile(const std::shared_ptr<ov::Model>& model) {
    return core_.compile_model(model, kDevice, properties_);
  }

  const Bundle& bundle_;
  const std::uint64_t join_weights_above_;
  const bool check_hashes_;
  ov::Core core_;
  ov::AnyMap properties_;
  std::map<std::string, Compiled> compiled_;
};

}  // namespace

std::unique_ptr<Backend> make_openvino(const Bundle& bundle, const Options& options) {
  return std::make_unique<OpenVino>(bundle, options);
}

}  // namespace tgate
