#include "host_memory.hpp"

#include <cstdlib>
#include <cstring>
#include <new>

namespace tgate {
namespace {

constexpr std::size_t kAlignment = 64;

std::size_t stride(const BufferSpec& spec) {
  return (spec.row_bytes() + kAlignment - 1) / kAlignment * kAlignment;
}

void check_size(const BufferSpec& spec, const Slot& slot, std::size_t bytes) {
  if (spec.row_bytes() != bytes) throw std::logic_error("buffer " + slot.buffer + ": wrong size");
}

}  // namespace

void HostMemory::Free::operator()(void* block) const noexcept { std::free(block); }

HostMemory::HostMemory(const Buffers& buffers) : specs_(buffers) {
  for (const auto& [name, spec] : buffers) {
    const std::size_t bytes = stride(spec) * static_cast<std::size_t>(spec.slots());
    void* block = std::aligned_alloc(kAlignment, bytes);
    if (block == nullptr) throw std::bad_alloc();
    blocks_[name].reset(std::memset(block, 0, bytes));
  }
}

void* HostMemory::address(const Slot& slot) const {
  const std::size_t row = slot.row < 0 ? 0 : static_cast<std::size_t>(slot.row);
  return static_cast<std::byte*>(blocks_.at(slot.buffer).get()) + row * stride(spec(slot));
}

void HostMemory::write(const Slot& slot, const void* data, std::size_t bytes) {
  check_size(spec(slot), slot, bytes);
  std::memcpy(address(slot), data, bytes);
}

void HostMemory::read(const Slot& slot, void* data, std::size_t bytes) {
  check_size(spec(slot), slot, bytes);
  std::memcpy(data, address(slot), bytes);
}

}  // namespace tgate
