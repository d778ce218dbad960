// Buffers in the host's memory, for backends that run there.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "backend.hpp"

namespace tgate {

class HostMemory : public Memory {
 public:
  explicit HostMemory(const Buffers& buffers);

  void write(const Slot& slot, const void* data, std::size_t bytes) override;
  void read(const Slot& slot, void* data, std::size_t bytes) override;

  const BufferSpec& spec(const Slot& slot) const { return specs_.at(slot.buffer); }
  void* address(const Slot& slot) const;  // aligned to 64 bytes

 private:
  struct Free {
    void operator()(void* block) const noexcept;
  };

  Buffers specs_;
  std::map<std::string, std::unique_ptr<void, Free>> blocks_;
};

}  // namespace tgate
