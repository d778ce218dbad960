// Opens a bundle: its files are the ones that were built, or it is refused.
#include <set>

#include <tgate/error.hpp>
#include <tgate/manifest.hpp>

#include "bundle_files.hpp"
#include "files.hpp"
#include "plans.hpp"
#include "sha256.hpp"
#include "unicode.hpp"

namespace tgate {
namespace fs = std::filesystem;
namespace {

constexpr const char* kManifest = "manifest.json";
constexpr const char* kAgain = ": build the bundle again";

Manifest read_manifest(const fs::path& path) {
  const fs::path file = path / kManifest;
  std::string text;
  try {
    text = read_file(file, kMostRecordBytes);
  } catch (const fs::filesystem_error& error) {
    if (error.code() == std::errc::no_such_file_or_directory ||
        error.code() == std::errc::not_a_directory) {
      const std::string hint =
          fs::exists(path) ? ": it has no " + std::string(kManifest) : ": no such folder";
      throw Error(ErrorKind::bundle, path.string() + " is not a bundle" + hint +
                                         ": make one with `tgate-export build`");
    }
    throw Error(ErrorKind::bundle, "cannot read " + file.string() + ": " + reason_of(error));
  } catch (const std::invalid_argument& error) {
    throw Error(ErrorKind::bundle, "cannot read " + file.string() + ": " + error.what() + kAgain);
  }
  if (!is_utf8(text)) {
    throw Error(ErrorKind::bundle, "cannot read " + file.string() + ": it is not UTF-8");
  }
  return parse_manifest(text, file.string());
}

bool is_inside(const fs::path& path, const fs::path& root) {
  auto part = path.begin();
  for (const fs::path& parent : root) {
    if (part == path.end() || *part++ != parent) return false;
  }
  return true;
}

void check_file(const fs::path& file, const fs::path& root, std::uint64_t bytes) {
  std::error_code error;
  const fs::path real = fs::weakly_canonical(file, error);
  if (error) {  // a link to itself
    throw Error(ErrorKind::bundle,
                file.string() + " cannot be read (" + error.message() + ")" + kAgain);
  }
  if (!is_inside(real, root)) {
    throw Error(ErrorKind::bundle,
                file.string() + " is a link that leaves the bundle, as in the hub's cache: copy "
                                "the folder with `cp -rL`, or download it with --local-dir");
  }
  if (!fs::is_regular_file(real)) {
    throw Error(ErrorKind::bundle, file.string() + " is missing" + kAgain);
  }
  if (const auto size = fs::file_size(real); size != bytes) {
    throw Error(ErrorKind::bundle, file.string() + " has " + std::to_string(size) + " bytes, " +
                                       std::to_string(bytes) + " were built" + kAgain);
  }
}

// Files that are neither listed, nor the manifest, nor below plans/.
std::set<std::string> extra_files(const Bundle& bundle) {
  std::set<std::string> extra;
  for (auto entry = fs::recursive_directory_iterator(
           bundle.path, fs::directory_options::skip_permission_denied);
       entry != fs::recursive_directory_iterator(); ++entry) {
    const fs::path relative = entry->path().lexically_relative(bundle.path);
    if (*relative.begin() == "plans") {
      entry.disable_recursion_pending();
    } else if (!is_bystander(relative) && (entry->is_symlink() || !entry->is_directory()) &&
               relative != kManifest &&
               !bundle.manifest.files.contains(relative.generic_string())) {
      extra.insert(relative.generic_string());
    }
  }
  return extra;
}

void check_files(Bundle& bundle, bool check_hashes) {
  const fs::path root = fs::canonical(bundle.path);
  const auto states = std::make_shared<FileStates>();
  for (const auto& [relative, expected] : bundle.manifest.files) {
    check_file(bundle.file(relative), root, expected.bytes);
    states->files.emplace(relative, state_of(bundle.file(relative)));
  }
  bundle.states = states;
  if (const auto extra = extra_files(bundle); !extra.empty()) {
    throw Error(ErrorKind::bundle, bundle.file(*extra.begin()).string() +
                                       " does not belong to the bundle: move it elsewhere");
  }
  if (!check_hashes) return;
  std::vector<fs::path> files;
  for (const auto& [relative, expected] : bundle.manifest.files) {
    files.push_back(bundle.file(relative));
  }
  const std::vector<std::string> hashes = sha256_of_files(files);
  std::size_t index = 0;
  for (const auto& [relative, expected] : bundle.manifest.files) {
    if (hashes[index++] != expected.sha256) {
      throw Error(ErrorKind::bundle, bundle.file(relative).string() +
                                         " was changed after the build (its sha256 differs)" +
                                         kAgain);
    }
  }
}

}  // namespace

Bundle open_bundle(const fs::path& path, bool check_hashes) {
  const fs::path plain = plain_path(path);
  try {
    Manifest manifest = read_manifest(plain);
    // What is loaded later is of this folder, wherever the process and a link to it go meanwhile.
    Bundle bundle{fs::canonical(plain), std::move(manifest)};
    check_files(bundle, check_hashes);
    check_plan_sets(bundle, check_hashes);
    return bundle;
  } catch (const fs::filesystem_error& error) {
    throw Error(ErrorKind::bundle,
                "cannot read " + error.path1().string() + ": " + reason_of(error));
  }
}

}  // namespace tgate
