// The CUDA runtime, as thin as it can be: checked calls, and objects that free themselves.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include <cuda_runtime_api.h>

#include "backend.hpp"

namespace tgate {

// Device memory, freed with this object.
class Block {
 public:
  Block() = default;
  Block(void* address, std::size_t bytes) : address_(address), bytes_(bytes) {}

  void* address() const { return address_.get(); }
  std::size_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(void* address) const noexcept { cudaFree(address); }
  };

  std::unique_ptr<void, Free> address_;
  std::size_t bytes_ = 0;
};

// One GPU, and the stream on which everything of ours runs, in order.
class Cuda {
 public:
  Cuda();  // throws Error: no driver, one that is too old, or no GPU

  cudaStream_t stream() const { return stream_.get(); }
  std::string compute_capability() const;  // such as "8.9"

  Block allocate(std::size_t bytes, const std::string& purpose) const;  // throws Error
  void fill_zero(const Block& block) const;
  void copy(void* target, const void* source, std::size_t bytes) const;  // on the device
  void upload(void* target, const void* source, std::size_t bytes) const;
  void download(void* target, const void* source, std::size_t bytes) const;  // waits
  void synchronize() const;
  Mark record() const;
  double seconds(const Mark& start, const Mark& end) const;
  // Records what `enqueue` queues; the result queues all of it at once.
  Execute capture(const Execute& enqueue) const;

 private:
  struct Destroy {
    void operator()(cudaStream_t stream) const noexcept { cudaStreamDestroy(stream); }
  };

  std::unique_ptr<std::remove_pointer_t<cudaStream_t>, Destroy> stream_;
};

Error out_of_memory(const std::string& purpose, std::size_t needed);

}  // namespace tgate
