// A bundle's files as they were when it was opened and checked.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include <tgate/manifest.hpp>

namespace tgate {

// What another content of a file changes, unless somebody takes care that it does not.
struct FileState {
  std::uint64_t device, inode, bytes;
  std::int64_t seconds, nanoseconds;  // when it was last written

  bool operator==(const FileState& other) const {
    return device == other.device && inode == other.inode && bytes == other.bytes &&
           seconds == other.seconds && nanoseconds == other.nanoseconds;
  }
};

struct FileStates {
  std::map<std::string, FileState> files;  // by path in the bundle
};

// Throws std::filesystem::filesystem_error.
FileState state_of(const std::filesystem::path& file);

// Throws Error when a file of the bundle is another than the one that was checked; one that was
// touched since is hashed again.
void check_unchanged(const Bundle& bundle, const std::string& relative);

// Reads a file of the bundle, of at most so many bytes. Throws Error.
std::string read_bundle_file(const Bundle& bundle, const std::string& relative, std::uint64_t most);

// Reads a graph for an engine, which is to have these bytes and not the file. Throws Error when
// they are not the ones that were built or, see `check_onnx`, name other data than the bundle's.
std::string read_graph(const Bundle& bundle, const std::string& graph, bool check_hashes);

}  // namespace tgate
