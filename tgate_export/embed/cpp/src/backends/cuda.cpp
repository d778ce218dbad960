#include "cuda.hpp"

#include <algorithm>
#include <cstdio>

namespace tgate {
namespace {

constexpr const char* kElsewhere = ", or use --backend onnxruntime:cpu";

Error backend_error(const std::string& message) { return {ErrorKind::backend, message}; }

void check(cudaError_t error, const std::string& doing) {
  if (error == cudaSuccess) return;
  throw backend_error("CUDA could not " + doing + ": " + cudaGetErrorString(error) + " (" +
                      cudaGetErrorName(error) + ")");
}

void probe() {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    throw backend_error(
        std::string("no CUDA driver on this machine: install NVIDIA's driver") + kElsewhere);
  }
  int needed = 0;
  check(cudaRuntimeGetVersion(&needed), "ask for its version");
  if (driver / 1000 < needed / 1000) {
    throw backend_error("the CUDA driver is too old (it supports CUDA " +
                        std::to_string(driver / 1000) + "." + std::to_string(driver % 1000 / 10) +
                        ", and " + std::to_string(needed / 1000) +
                        ".0 or later is needed): update NVIDIA's driver");
  }
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    throw backend_error(std::string("no CUDA GPU (") + cudaGetErrorString(error) +
                        "): check nvidia-smi and CUDA_VISIBLE_DEVICES" + kElsewhere);
  }
}

std::string gib(std::size_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f GiB", static_cast<double>(bytes) / (1 << 30));
  return text;
}

}  // namespace

Cuda::Cuda() {
  probe();
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "make a stream");
  stream_.reset(stream);
}

std::string Cuda::compute_capability() const {
  int major = 0;
  int minor = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "ask for the GPU");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0), "ask for the GPU");
  return std::to_string(major) + "." + std::to_string(minor);
}

Block Cuda::allocate(std::size_t bytes, const std::string& purpose) const {
  void* address = nullptr;
  const cudaError_t error = cudaMalloc(&address, std::max<std::size_t>(bytes, 1));
  if (error == cudaErrorMemoryAllocation) throw out_of_memory(purpose, bytes);
  check(error, "allocate " + std::to_string(bytes) + " bytes for " + purpose);
  return {address, bytes};
}

void Cuda::fill_zero(const Block& block) const {
  check(cudaMemsetAsync(block.address(), 0, block.bytes(), stream()), "clear memory");
}

void Cuda::copy(void* target, const void* source, std::size_t bytes) const {
  check(cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToDevice, stream()),
        "copy on the device");
}

void Cuda::upload(void* target, const void* source, std::size_t bytes) const {
  // CUDA reads pageable memory before it returns, and does not wait for the device.
  check(cudaMemcpyAsync(target, source, bytes, cudaMemcpyHostToDevice, stream()),
        "copy to the device");
}

void Cuda::download(void* target, const void* source, std::size_t bytes) const {
  check(cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToHost, stream()),
        "copy from the device");
  synchronize();
}

void Cuda::synchronize() const {
  check(cudaStreamSynchronize(stream()), "run what was queued");
}

Mark Cuda::record() const {
  cudaEvent_t event = nullptr;
  check(cudaEventCreate(&event), "make an event");
  Mark mark{{}, std::shared_ptr<void>(event, [](void* handle) {
              cudaEventDestroy(static_cast<cudaEvent_t>(handle));
            })};
  check(cudaEventRecord(event, stream()), "record an event");
  return mark;
}

double Cuda::seconds(const Mark& start, const Mark& end) const {
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, static_cast<cudaEvent_t>(start.event.get()),
                             static_cast<cudaEvent_t>(end.event.get())),
        "read a time");
  return static_cast<double>(milliseconds) / 1e3;
}

Execute Cuda::capture(const Execute& enqueue) const {
  check(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal), "begin a capture");
  cudaGraph_t graph = nullptr;
  try {
    enqueue();
  } catch (...) {
    if (cudaStreamEndCapture(stream(), &graph) == cudaSuccess) cudaGraphDestroy(graph);
    throw;
  }
  check(cudaStreamEndCapture(stream(), &graph), "capture a launch");
  cudaGraphExec_t executable = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  check(error, "make a CUDA graph");
  const std::shared_ptr<std::remove_pointer_t<cudaGraphExec_t>> owner(executable,
                                                                      &cudaGraphExecDestroy);
  return [owner, queue = stream()] {
    check(cudaGraphLaunch(owner.get(), queue), "launch a CUDA graph");
  };
}

Error out_of_memory(const std::string& purpose, std::size_t needed) {
  std::size_t available = 0;
  std::size_t total = 0;
  if (cudaMemGetInfo(&available, &total) != cudaSuccess) available = 0;
  return backend_error("out of GPU memory: " + purpose + " needs " + gib(needed) + ", " +
                       gib(available) +
                       " is free: end what else uses the GPU, or ask for fewer or smaller images a "
                       "call");
}

}  // namespace tgate
