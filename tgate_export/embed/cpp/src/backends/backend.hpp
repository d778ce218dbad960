// The interface between the step loop and what runs graphs.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <tgate/manifest.hpp>
#include <tgate/pipeline.hpp>

#include "../binding_plan.hpp"

namespace tgate {

using Execute = std::function<void()>;

// The buffers of one run shape, allocated once on the backend's device, and zeroed.
class Memory {
 public:
  virtual ~Memory() = default;

  // Copies `bytes` from the host. Throws Error, see `check_slot`, unless the slot is of that size;
  // `read` does, too.
  virtual void write(const Slot& slot, const void* data, std::size_t bytes) = 0;
  // Waits for every launch before it, and copies to the host.
  virtual void read(const Slot& slot, void* data, std::size_t bytes) = 0;
};

// A moment on the host, or, with an event, on the device.
struct Mark {
  std::chrono::steady_clock::time_point time;
  std::shared_ptr<void> event;
};

// Loads the graphs of one bundle and runs them on bound buffers. Launches run in the order in
// which they are made; on an asynchronous device they are only queued: `synchronize` and
// `Memory::read` wait, nothing else does.
class Backend {
 public:
  explicit Backend(std::string name) : name_(std::move(name)) {}
  virtual ~Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  const std::string& name() const { return name_; }

  // Loads what the plan launches, and allocates its buffers. One run shape at a time: destroy the
  // last one's memory first.
  virtual std::unique_ptr<Memory> allocate(const BindingPlan& plan) = 0;
  // Binds a launch's tensors; the result queues it.
  virtual Execute prepare(const Launch& launch, Memory& memory) = 0;
  // What `allocate` had to say since the last call.
  virtual std::vector<std::string> take_warnings() { return {}; }
  // How many of the images that are left one run can take.
  virtual int batch_size(int images) const { return images; }
  virtual void synchronize() {}
  virtual Mark mark() { return {std::chrono::steady_clock::now(), nullptr}; }
  // Between two marks; call `synchronize` before.
  virtual double seconds(const Mark& start, const Mark& end) {
    return std::chrono::duration<double>(end.time - start.time).count();
  }

 private:
  std::string name_;
};

struct Selected {
  std::unique_ptr<Backend> backend;
  std::string reason;
};

// The backend that `options.backend` names. Throws Error.
Selected select_backend(const Bundle& bundle, const Options& options);

// Each is there when CMake found its headers.
std::unique_ptr<Backend> make_onnxruntime(const Bundle& bundle, const Options& options);
std::unique_ptr<Backend> make_openvino(const Bundle& bundle, const Options& options);
std::unique_ptr<Backend> make_tensorrt(const Bundle& bundle, const Options& options);

}  // namespace tgate
