#pragma once

#include <filesystem>
#include <string>

namespace tgate {

// Reads a whole file. Throws std::filesystem::filesystem_error.
std::string read_file(const std::filesystem::path& file);

// As Python's pathlib writes a path: without "." and doubled slashes, ".." kept.
std::filesystem::path plain_path(const std::filesystem::path& path);

// Whether a file of that name, relative to a bundle, may lie in it without being listed: others put
// it there, and nobody reads it.
bool is_bystander(const std::filesystem::path& relative);

// The reason alone: "Permission denied".
std::string reason_of(const std::filesystem::filesystem_error& error);

}  // namespace tgate
