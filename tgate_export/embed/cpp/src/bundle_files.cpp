#include "bundle_files.hpp"

#include <cerrno>
#include <stdexcept>
#include <system_error>

#include <sys/stat.h>

#include <tgate/error.hpp>

#include "files.hpp"
#include "onnx_check.hpp"
#include "sha256.hpp"

namespace tgate {
namespace fs = std::filesystem;
namespace {

// Graphs of the largest models have a few MiB: their weights lie beside them.
constexpr std::uint64_t kMostGraphBytes = 256 << 20;

}  // namespace

FileState state_of(const fs::path& file) {
  struct stat status {};
  if (stat(file.c_str(), &status) != 0) {
    throw fs::filesystem_error("stat", file, std::error_code(errno, std::generic_category()));
  }
  return {static_cast<std::uint64_t>(status.st_dev), static_cast<std::uint64_t>(status.st_ino),
          static_cast<std::uint64_t>(status.st_size),
          static_cast<std::int64_t>(status.st_mtim.tv_sec),
          static_cast<std::int64_t>(status.st_mtim.tv_nsec)};
}

void check_unchanged(const Bundle& bundle, const std::string& relative) {
  if (!bundle.states) return;
  const fs::path file = bundle.file(relative);
  std::string reason = "was changed";
  try {
    if (bundle.states->files.at(relative) == state_of(file)) return;
    // A bundle may be copied over by itself.
    if (sha256_of_files({file})[0] == bundle.manifest.files.find(relative)->sha256) return;
  } catch (const fs::filesystem_error& error) {
    reason = "is gone (" + reason_of(error) + ")";
  }
  throw Error(ErrorKind::bundle,
              file.string() + " " + reason + " while the bundle was in use: load the bundle again");
}

std::string read_bundle_file(const Bundle& bundle, const std::string& relative,
                             std::uint64_t most) {
  check_unchanged(bundle, relative);
  const fs::path file = bundle.file(relative);
  try {
    std::string text = read_file(file, most);
    check_unchanged(bundle, relative);
    return text;
  } catch (const fs::filesystem_error& error) {
    throw Error(ErrorKind::bundle, "cannot read " + file.string() + ": " + reason_of(error));
  } catch (const std::invalid_argument& error) {
    throw Error(ErrorKind::bundle, "cannot read " + file.string() + ": " + error.what() +
                                       ": build the bundle again");
  }
}

std::string read_graph(const Bundle& bundle, const std::string& graph, bool check_hashes) {
  const Graph& record = bundle.manifest.graph(graph);
  const std::string where = bundle.file(record.file).string();
  std::string model = read_bundle_file(bundle, record.file, kMostGraphBytes);
  if (check_hashes && sha256_of_text(model) != bundle.manifest.files.find(record.file)->sha256) {
    throw Error(ErrorKind::bundle,
                where + " was changed after the build (its sha256 differs): build the bundle again");
  }
  std::optional<WeightsFile> weights;
  if (record.weights) {
    const fs::path beside = fs::path(record.file).parent_path();
    const fs::path name = fs::path(*record.weights).lexically_relative(beside);
    weights = {name.string(), bundle.manifest.files.find(*record.weights)->bytes};
    check_unchanged(bundle, *record.weights);
  }
  check_onnx(model, weights, where);
  return model;
}

}  // namespace tgate
