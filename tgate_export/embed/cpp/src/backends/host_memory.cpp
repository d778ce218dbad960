#include "host_memory.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

#include <unistd.h>

namespace tgate {
namespace {

constexpr std::size_t kAlignment = 64;

std::size_t stride(const BufferSpec& spec) {
  return (spec.row_bytes() + kAlignment - 1) / kAlignment * kAlignment;
}

// Sums of sizes that no machine has do not wrap around.
std::size_t times(std::size_t bytes, std::size_t count) {
  constexpr std::size_t kMost = std::numeric_limits<std::size_t>::max();
  return bytes > kMost / count ? kMost : bytes * count;
}

// What does not fit would be killed later, with the program.
void check_total(const Buffers& buffers) {
  std::size_t total = 0;
  for (const auto& [name, spec] : buffers) {
    const std::size_t bytes = times(stride(spec), static_cast<std::size_t>(spec.slots()));
    total += std::min(bytes, std::numeric_limits<std::size_t>::max() - total);
  }
  const auto memory = times(static_cast<std::size_t>(std::max(sysconf(_SC_PHYS_PAGES), 1L)),
                            static_cast<std::size_t>(std::max(sysconf(_SC_PAGESIZE), 1L)));
  if (total > memory) {
    throw Error(ErrorKind::backend, "the buffers of a run take " + std::to_string(total >> 20) +
                                        " MiB, this machine has " + std::to_string(memory >> 20) +
                                        ": ask for fewer or smaller images a call");
  }
}

}  // namespace

void HostMemory::Free::operator()(void* block) const noexcept { std::free(block); }

HostMemory::HostMemory(const Buffers& buffers) : specs_(buffers) {
  check_total(buffers);
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
  check_slot(specs_, slot, bytes);
  std::memcpy(address(slot), data, bytes);
}

void HostMemory::read(const Slot& slot, void* data, std::size_t bytes) {
  check_slot(specs_, slot, bytes);
  std::memcpy(data, address(slot), bytes);
}

}  // namespace tgate
