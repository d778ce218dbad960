#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace tgate {

std::string sha256_of_text(std::string_view text);

// The sha256 of every file, in order; several are hashed at once. Throws Error.
std::vector<std::string> sha256_of_files(const std::vector<std::filesystem::path>& files);

}  // namespace tgate
