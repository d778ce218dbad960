#include "files.hpp"

#include <cerrno>
#include <set>
#include <stdexcept>
#include <system_error>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace tgate {
namespace fs = std::filesystem;
namespace {

class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor() {
    if (number_ >= 0) close(number_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int number() const { return number_; }

 private:
  int number_;
};

}  // namespace

std::string read_file(const fs::path& file, std::uint64_t most) {
  const auto fail = [&](int code) {
    throw fs::filesystem_error("read", file, std::error_code(code, std::generic_category()));
  };
  // Not blocking: opening a pipe would wait for somebody to write to it.
  const Descriptor descriptor(open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (descriptor.number() < 0) fail(errno);
  struct stat status {};
  if (fstat(descriptor.number(), &status) != 0) fail(errno);
  if (S_ISDIR(status.st_mode)) fail(EISDIR);
  if (!S_ISREG(status.st_mode)) throw std::invalid_argument("it is no regular file");
  const auto check = [&](std::uint64_t bytes) {
    if (bytes > most) {
      throw std::invalid_argument("it has more than " + std::to_string(most >> 20) + " MiB");
    }
  };
  check(static_cast<std::uint64_t>(status.st_size));
  std::string text(static_cast<std::size_t>(status.st_size), '\0');
  std::size_t size = 0;
  for (;;) {
    if (size == text.size()) text.resize(size + (1 << 16));  // there may be more than it said
    const ssize_t count = read(descriptor.number(), &text[size], text.size() - size);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(errno);
    if (count == 0) break;
    size += static_cast<std::size_t>(count);
    check(size);
  }
  text.resize(size);
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
