#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <string>

namespace tgate {

// How large a file may be whose whole text is parsed: a manifest or a record of plans; a sampler
// table or a tokenizer.
constexpr std::uint64_t kMostRecordBytes = 4 << 20;
constexpr std::uint64_t kMostTableBytes = 32 << 20;

// Reads a whole file, of at most so many bytes. Throws std::filesystem::filesystem_error, and
// std::invalid_argument for a file that is larger, or that is a pipe or a device.
std::string read_file(const std::filesystem::path& file,
                      std::uint64_t most = std::numeric_limits<std::uint64_t>::max());

// As Python's pathlib writes a path: without "." and doubled slashes, ".." kept.
std::filesystem::path plain_path(const std::filesystem::path& path);

// Whether a file of that name, relative to a bundle, may lie in it without being listed: others put
// it there, and nobody reads it.
bool is_bystander(const std::filesystem::path& relative);

// The reason alone: "Permission denied".
std::string reason_of(const std::filesystem::filesystem_error& error);

}  // namespace tgate
