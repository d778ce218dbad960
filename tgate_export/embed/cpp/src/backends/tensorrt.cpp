// Plans on TensorRT or TensorRT-RTX: shared activations, fixed addresses, CUDA graphs.
#include <algorithm>
#include <map>
#include <mutex>

#include <NvInferRuntime.h>

#include "../files.hpp"
#include "../plans.hpp"
#include "../text.hpp"
#include "../rebuild.hpp"
#include "cuda.hpp"
#include "plan_choice.hpp"

namespace tgate {
namespace {

namespace fs = std::filesystem;
namespace trt = nvinfer1;

#ifdef TGATE_TENSORRT_RTX
constexpr const char* kLibrary = "tensorrt-rtx";
#else
constexpr const char* kLibrary = "tensorrt";
#endif
constexpr std::size_t kAlignment = 256;  // what TensorRT asks of an address

// Of the library that is loaded; plans are keyed by it.
std::string library_version() {
  return std::to_string(getInferLibMajorVersion()) + "." +
         std::to_string(getInferLibMinorVersion()) + "." +
         std::to_string(getInferLibPatchVersion()) + "." +
         std::to_string(getInferLibBuildVersion());
}

// Keeps errors, for the message of the exception that follows them. TensorRT calls it from any
// thread.
class Logger : public trt::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity > Severity::kERROR) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    try {
      errors_.emplace_back(message);
    } catch (...) {  // out of memory: the message is lost
    }
  }

  // Says why a call failed, and forgets it.
  Error failure(const std::string& what, std::size_t needed) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<std::string> errors;
    errors.swap(errors_);
    for (const std::string& error : errors) {
      if (error.find("out of memory") != std::string::npos ||
          error.find("OutOfMemory") != std::string::npos) {
        return out_of_memory(what, needed);
      }
    }
    const std::string reason = errors.empty() ? "TensorRT gives no reason" : one_line(errors[0]);
    return {ErrorKind::backend,
            what + " (" + reason + "): build the plans again, or use another backend"};
  }

 private:
  std::mutex mutex_;
  std::vector<std::string> errors_;
};

const char* name_of(trt::DataType type) {
  switch (type) {
    case trt::DataType::kFLOAT: return "float32";
    case trt::DataType::kHALF: return "float16";
    case trt::DataType::kBF16: return "bfloat16";
    case trt::DataType::kINT64: return "int64";
    case trt::DataType::kINT32: return "int32";
    default: return "another type";
  }
}

// -1 where TensorRT does not know it yet: no dimensions.
Shape shape_of(const trt::Dims& dims) {
  return {dims.d, dims.d + std::clamp(dims.nbDims, 0, trt::Dims::MAX_DIMS)};
}

trt::Dims dims_of(const Shape& shape) {
  trt::Dims dims{};
  if (shape.size() > trt::Dims::MAX_DIMS) {
    throw Error(ErrorKind::bundle, "TensorRT has no tensors of shape " + shape_text(shape));
  }
  dims.nbDims = static_cast<std::int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), dims.d);
  return dims;
}

std::string read_plan(const fs::path& path) {
  try {
    return read_file(path);
  } catch (const std::exception& error) {  // of the file system, or no regular file
    throw Error(ErrorKind::bundle, "cannot read " + path.string() + ": " + one_line(error.what()));
  }
}

struct View {
  DType dtype;
  Shape shape;
  void* address;
};
using Views = std::map<std::string, View>;

// A plan with its only execution context, which keeps shapes and addresses until they change.
class Engine {
 public:
  Engine(trt::IRuntime& runtime, Logger& logger, std::string graph, const fs::path& path)
      : graph_(std::move(graph)), path_(path), logger_(logger) {
    const std::string plan = read_plan(path);
    engine_.reset(runtime.deserializeCudaEngine(plan.data(), plan.size()));
    if (!engine_) throw logger_.failure(path.string() + " cannot be loaded", plan.size());
    const std::unique_ptr<trt::IRuntimeConfig> config(engine_->createRuntimeConfig());
    if (config) {
      config->setExecutionContextAllocationStrategy(
          trt::ExecutionContextAllocationStrategy::kUSER_MANAGED);
#ifdef TRT_MAJOR_RTX
      // It compiles kernels on the machine: all of them in the warm-up, so that a capture holds
      // the fast ones and nothing is compiled during a run.
      config->setDynamicShapesKernelSpecializationStrategy(
          trt::DynamicShapesKernelSpecializationStrategy::kEAGER);
#endif
      context_.reset(engine_->createExecutionContext(config.get()));
    }
    if (!context_) throw logger_.failure(path.string() + " cannot be prepared", plan.size());
  }

  // Sets every input's shape; returns how many bytes of activations they take.
  std::size_t set_shapes(const std::map<std::string, Shape>& shapes) {
    for (const auto& [tensor, shape] : shapes) {
      if (!context_->setInputShape(tensor.c_str(), dims_of(shape))) {
        throw Error(ErrorKind::backend, path_.string() + " does not take " + quote(tensor) +
                                            " of shape " + shape_text(shape));
      }
    }
    const char* unknown = nullptr;
    if (context_->inferShapes(1, &unknown) != 0) {
      throw Error(ErrorKind::backend, path_.string() + " needs the shape of " +
                                          quote(unknown != nullptr ? unknown : "a tensor"));
    }
    return static_cast<std::size_t>(context_->updateDeviceMemorySizeForShapes());
  }

  void set_activations(const Block& block) {
    context_->setDeviceMemoryV2(block.address(), static_cast<std::int64_t>(block.bytes()));
  }

  // The only way from a buffer to a launch. Throws Error: names the first tensor that does not
  // fit: direction, dtype, shape or pointer.
  void check(const Views& inputs, const Views& outputs) const {
    std::size_t bound = 0;
    for (const auto* views : {&inputs, &outputs}) {
      const bool input = views == &inputs;
      for (const auto& [tensor, view] : *views) {
        check_one(tensor, view, input);
        ++bound;
      }
    }
    for (std::int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
      const std::string tensor = engine_->getIOTensorName(i);
      if (!inputs.count(tensor) && !outputs.count(tensor)) {
        throw misfit(tensor, "nothing is bound to it");
      }
    }
  }

  void enqueue(const std::map<std::string, void*>& addresses, cudaStream_t stream) {
    if (bound_ != addresses) {
      bound_.clear();
      for (const auto& [tensor, address] : addresses) {
        if (!context_->setTensorAddress(tensor.c_str(), address)) {
          throw logger_.failure("graph " + quote(graph_) + " refuses " + quote(tensor), 0);
        }
      }
      bound_ = addresses;
    }
    if (!context_->enqueueV3(stream)) {
      throw logger_.failure("graph " + quote(graph_) + " cannot be run", 0);
    }
  }

  // Whether a launch can become a CUDA graph: TensorRT-RTX knows, TensorRT captures to see.
  bool capturable([[maybe_unused]] cudaStream_t stream) const {
#ifdef TRT_MAJOR_RTX
    return context_->isStreamCapturable(stream);
#else
    return true;
#endif
  }

 private:
  Error misfit(const std::string& tensor, const std::string& reason) const {
    return {ErrorKind::backend, "graph " + quote(graph_) + ": tensor " + quote(tensor) +
                                    " cannot be bound: " + reason};
  }

  void check_one(const std::string& tensor, const View& view, bool input) const {
    const trt::TensorIOMode mode = engine_->getTensorIOMode(tensor.c_str());
    if (mode == trt::TensorIOMode::kNONE) {
      throw misfit(tensor, "the plan has no tensor of that name");
    }
    if ((mode == trt::TensorIOMode::kINPUT) != input) {
      throw misfit(tensor, input ? "it is an output of the plan, not an input"
                                 : "it is an input of the plan, not an output");
    }
    const std::string type = name_of(engine_->getTensorDataType(tensor.c_str()));
    if (type != tgate::name_of(view.dtype)) {
      throw misfit(tensor, "the plan has " + type + ", the buffer " + tgate::name_of(view.dtype));
    }
    const Shape shape = shape_of(context_->getTensorShape(tensor.c_str()));
    if (shape != view.shape) {
      throw misfit(tensor,
                   "the plan has shape " + shape_text(shape) + ", the buffer " +
                       shape_text(view.shape));
    }
    if (view.address == nullptr ||
        reinterpret_cast<std::uintptr_t>(view.address) % kAlignment != 0) {
      throw misfit(tensor, "its address is not a multiple of 256 above 0");
    }
  }

  std::string graph_;
  fs::path path_;
  Logger& logger_;
  std::unique_ptr<trt::ICudaEngine> engine_;
  std::unique_ptr<trt::IExecutionContext> context_;
  std::map<std::string, void*> bound_;
};

// One block for each tensor that launches are bound to, and one for all rows of a buffer. A launch
// that reads a row is queued after a copy of it to the bound block, so that it has the same
// addresses at every step, and 256-byte alignment whatever the row's size.
class DeviceMemory : public Memory {
 public:
  DeviceMemory(const Cuda& cuda, const Buffers& buffers) : cuda_(cuda), specs_(buffers) {
    for (const auto& [name, spec] : buffers) {
      const std::string purpose = "buffer " + quote(name);
      bound_[name] = cuda.allocate(spec.row_bytes(), purpose);
      cuda.fill_zero(bound_[name]);
      if (spec.rows == 0) continue;
      rows_[name] =
          cuda.allocate(spec.row_bytes() * static_cast<std::size_t>(spec.rows), purpose);
      cuda.fill_zero(rows_[name]);
    }
  }

  void write(const Slot& slot, const void* data, std::size_t bytes) override {
    check_slot(specs_, slot, bytes);
    cuda_.upload(address(slot), data, bytes);
  }
  void read(const Slot& slot, void* data, std::size_t bytes) override {
    check_slot(specs_, slot, bytes);
    cuda_.download(data, address(slot), bytes);
  }

  Views views(const Bound& bound) const {
    Views found;
    for (const auto& [tensor, slot] : bound) {
      const BufferSpec& spec = specs_.at(slot.buffer);
      found[tensor] = {spec.dtype, spec.shape, bound_.at(slot.buffer).address()};
    }
    return found;
  }

  // Queues the copy of a row to where launches read it.
  void stage(const Slot& slot) const {
    cuda_.copy(bound_.at(slot.buffer).address(), address(slot),
               specs_.at(slot.buffer).row_bytes());
  }

  // Launches by graph and addresses: those of other steps with the same ones are the same.
  std::map<std::pair<std::string, std::map<std::string, void*>>, Execute> runs;

 private:
  void* address(const Slot& slot) const {
    if (slot.row < 0) return bound_.at(slot.buffer).address();
    return static_cast<std::byte*>(rows_.at(slot.buffer).address()) +
           static_cast<std::size_t>(slot.row) * specs_.at(slot.buffer).row_bytes();
  }

  const Cuda& cuda_;
  Buffers specs_;
  std::map<std::string, Block> bound_;
  std::map<std::string, Block> rows_;
};

class TensorRT : public Backend {
 public:
  TensorRT(const Bundle& bundle, const Options& options, std::vector<PlanSet> sets)
      : Backend(kLibrary),
        bundle_(bundle),
        sets_(std::move(sets)),
        cuda_graphs_(options.cuda_graphs),
        machine_{kLibrary, library_version(), cuda_.compute_capability()},
        runtime_(trt::createInferRuntime(logger_)) {
    if (!runtime_) throw logger_.failure(std::string(kLibrary) + " cannot be started", 0);
    choose_plans(sets_, machine_, {}, build_command());
  }

  int batch_size(int images) const override { return plan_batch_size(sets_, machine_, images); }

  std::unique_ptr<Memory> allocate(const BindingPlan& plan) override {
    const InputShapes shapes = input_shapes(plan);
    const PlanSet& set = choose_plans(sets_, machine_, shapes, build_command());
    std::size_t needed = 1;
    running_.clear();
    for (const auto& [graph, inputs] : shapes) {
      Engine& engine = load(set, graph);
      running_[graph] = &engine;
      needed = std::max(needed, engine.set_shapes(inputs));
    }
    if (activations_.bytes() < needed) {
      activations_ = {};  // free the smaller one first
      activations_ = cuda_.allocate(needed, "the activations of all plans");
    }
    for (const auto& [graph, engine] : running_) engine->set_activations(activations_);
    return std::make_unique<DeviceMemory>(cuda_, plan.buffers);
  }

  Execute prepare(const Launch& launch, Memory& memory) override {
    auto& device = dynamic_cast<DeviceMemory&>(memory);
    Engine& engine = *running_.at(launch.graph);
    const Views inputs = device.views(launch.inputs);
    const Views outputs = device.views(launch.outputs);
    engine.check(inputs, outputs);
    std::map<std::string, void*> addresses;
    for (const auto* views : {&inputs, &outputs}) {
      for (const auto& [tensor, view] : *views) addresses[tensor] = view.address;
    }
    auto [found, missing] = device.runs.try_emplace({launch.graph, addresses});
    if (missing) found->second = make_run(launch.graph, engine, addresses);
    std::vector<Slot> rows;
    for (const auto& [tensor, slot] : launch.inputs) {
      if (slot.row >= 0) rows.push_back(slot);
    }
    return [&device, rows, run = found->second] {
      for (const Slot& row : rows) device.stage(row);
      run();
    };
  }

  void synchronize() override { cuda_.synchronize(); }
  Mark mark() override { return cuda_.record(); }
  double seconds(const Mark& start, const Mark& end) override { return cuda_.seconds(start, end); }

 private:
  std::string build_command() const {
    BuildOptions changes{{"target", kLibrary}};
    if (machine_.library == "tensorrt-rtx") changes.emplace_back("sm", machine_.compute_capability);
    return rebuild_command(bundle_, changes);
  }

  Engine& load(const PlanSet& set, const std::string& graph) {
    const auto key = std::make_pair(set.path, graph);
    auto found = engines_.find(key);
    if (found == engines_.end()) {
      const Plan& plan = *set.plans.find(graph);
      const fs::path path = set.path / plan.file;
      if (plan.key.weights_stripped) {
        throw Error(ErrorKind::backend,
                    path.string() + " was stripped of its weights, which this program cannot "
                                    "give back: build the plans again without --strip-weights");
      }
      found = engines_.try_emplace(key, *runtime_, logger_, graph, path).first;
    }
    return found->second;
  }

  // What queues a graph on these addresses: a CUDA graph where that can be.
  Execute make_run(const std::string& graph, Engine& engine,
                   const std::map<std::string, void*>& addresses) {
    const Execute enqueue = [this, &engine, addresses] {
      engine.enqueue(addresses, cuda_.stream());
    };
    if (!cuda_graphs_) return enqueue;
    enqueue();  // what TensorRT defers to the first run with new shapes cannot be captured
    if (!engine.capturable(cuda_.stream())) return enqueue;
    try {
      return cuda_.capture(enqueue);
    } catch (const Error& error) {
      throw Error(ErrorKind::backend, "graph " + quote(graph) + " cannot become a CUDA graph (" +
                                          error.what() + "): use --no-cuda-graphs");
    }
  }

  const Bundle& bundle_;
  const std::vector<PlanSet> sets_;
  const bool cuda_graphs_;
  const Cuda cuda_;
  const Machine machine_;
  Logger logger_;
  std::unique_ptr<trt::IRuntime> runtime_;
  Block activations_;
  std::map<std::pair<fs::path, std::string>, Engine> engines_;
  std::map<std::string, Engine*> running_;
};

}  // namespace

std::unique_ptr<Backend> make_tensorrt(const Bundle& bundle, const Options& options) {
  std::vector<PlanSet> sets = check_plan_sets(bundle, false);
  sets.erase(std::remove_if(sets.begin(), sets.end(),
                            [](const PlanSet& set) { return set.key().library != kLibrary; }),
             sets.end());
  if (sets.empty()) {
    throw Error(ErrorKind::backend, bundle.path.string() + " has no " + kLibrary +
                                        " plans: make them with `" +
                                        rebuild_command(bundle, {{"target", kLibrary}}) +
                                        "`, or use --backend onnxruntime");
  }
  return std::make_unique<TensorRT>(bundle, options, std::move(sets));
}

}  // namespace tgate
