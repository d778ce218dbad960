// What a bundle holds: `manifest.json`, as engines/README.md describes it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tgate {

// Entries by name, in the order of the file; a bundle has few of them.
template <class T>
class Named {
 public:
  using Entry = std::pair<std::string, T>;

  const T* find(std::string_view name) const {
    for (const Entry& entry : entries_) {
      if (entry.first == name) return &entry.second;
    }
    return nullptr;
  }
  bool contains(std::string_view name) const { return find(name) != nullptr; }
  void add(std::string name, T value) { entries_.emplace_back(std::move(name), std::move(value)); }
  bool empty() const { return entries_.empty(); }
  std::size_t size() const { return entries_.size(); }
  auto begin() const { return entries_.begin(); }
  auto end() const { return entries_.end(); }

 private:
  std::vector<Entry> entries_;
};

enum class DType { float32, float16, int64 };

const char* name_of(DType dtype);
std::size_t bytes_of(DType dtype);

// A number, or the name of a dimension that is free.
struct Dim {
  std::int64_t size = 0;  // 0 when it is named
  std::string name;
};

struct TensorSpec {
  std::string name;
  DType dtype;
  std::vector<Dim> shape;
};

struct Graph {
  std::string file;
  std::optional<std::string> weights;
  std::string precision;
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;
};

// A stacked cache tensor [batch, layers, tokens, width], or [batch, passes, ...].
struct Cache {
  std::string tensor;
  std::optional<std::int64_t> passes;
  std::optional<std::int64_t> downsample;  // none: a single token
  std::int64_t width;
  std::int64_t layers;
};

// Smallest, usual and largest value; all equal when fixed.
struct Range {
  std::int64_t min;
  std::int64_t opt;
  std::int64_t max;

  bool contains(std::int64_t value) const { return min <= value && value <= max; }
};

std::string str(const Range& range);  // N or MIN:OPT:MAX

struct Defaults {
  std::int64_t num_inference_steps;
  std::int64_t gate_step;
  double guidance_scale;
  std::string scheduler;
  std::int64_t sp_interval;
  std::int64_t fi_interval;
  std::int64_t warm_up;
};

struct SamplerSpec {
  std::string file;
  std::int64_t max_steps;
};

struct TokenizerSpec {
  std::string file;
  std::int64_t max_length;
  std::int64_t pad_token_id;
  std::int64_t eos_token_id;
  std::optional<std::string> mask;
};

struct FileRecord {
  std::string sha256;
  std::uint64_t bytes;
};

struct Manifest {
  std::string name;
  std::string family;
  std::string source_kind;
  std::string source_model;
  std::string precision;
  Defaults defaults;
  Range batch;
  Range height;
  Range width;
  std::int64_t size_multiple;
  std::int64_t latent_channels;
  std::int64_t latent_downscale;
  std::optional<std::int64_t> frames;  // of a video
  Named<TokenizerSpec> tokenizers;  // by the input of `text_encoder` that takes the ids
  std::int64_t clip_skips;
  std::string guidance;                // classifier-free, embedded or none
  std::string absent_negative_prompt;  // empty or zeros
  Named<std::string> conditioning;     // time_ids, resolution or aspect_ratio
  Named<Graph> graphs;
  std::vector<Cache> cache;
  Named<SamplerSpec> samplers;
  Named<FileRecord> files;

  // Throws Error when the bundle has no graph of that name.
  const Graph& graph(std::string_view name) const;
};

struct FileStates;

// A folder that `tgate-export build` wrote, and its manifest.
struct Bundle {
  std::filesystem::path path;
  Manifest manifest;
  // Of the library: what the files were when they were checked.
  std::shared_ptr<const FileStates> states = nullptr;

  std::filesystem::path file(const std::string& relative) const { return path / relative; }
};

// Reads the text of a manifest; `where` is what errors call it. Throws Error.
Manifest parse_manifest(std::string_view text, const std::string& where);

// Opens a bundle after checking that every file is there, of the right size and, with
// `check_hashes`, of the right sha256 (about a second for 2 GB). Throws Error.
Bundle open_bundle(const std::filesystem::path& path, bool check_hashes = true);

}  // namespace tgate
