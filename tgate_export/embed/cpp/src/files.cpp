#include "files.hpp"

#include <cerrno>
#include <cstdio>
#include <memory>
#include <set>
#include <system_error>

namespace tgate {
namespace fs = std::filesystem;

std::string read_file(const fs::path& file) {
  const auto fail = [&](int code) {
    throw fs::filesystem_error("read", file, std::error_code(code, std::generic_category()));
  };
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> stream(std::fopen(file.c_str(), "rb"),
                                                               &std::fclose);
  if (!stream) fail(errno);
  std::string text;
  char buffer[1 << 16];
  while (const std::size_t count = std::fread(buffer, 1, sizeof buffer, stream.get())) {
    text.append(buffer, count);
  }
  if (std::ferror(stream.get())) fail(errno);
  return text;
}

fs::path plain_path(const fs::path& path) {
  fs::path plain;
  for (const fs::path& part : path) {
    if (!part.empty() && part != ".") plain /= part;
  }
  return plain.empty() ? fs::path(".") : plain;
}

bool is_bystander(const fs::path& relative) {
  static const std::set<std::string> anywhere{".DS_Store", "Thumbs.db", "desktop.ini"};
  static const std::set<std::string> on_top{"README.md",  "LICENSE", "LICENSE.md", ".gitattributes",
                                            ".gitignore", ".git",    ".cache"};
  return anywhere.count(relative.filename().string()) > 0 ||
         on_top.count(relative.begin()->string()) > 0;
}

std::string reason_of(const fs::filesystem_error& error) { return error.code().message(); }

}  // namespace tgate
