// What a bundle holds: `manifest.json`, as engines/README.md describes it.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include <tgate/parameter.hpp>

namespace tgate {

enum class DType { float32, float16, int64 };

const char* name_of(DType dtype);
std::size_t bytes_of(DType dtype);

// A number, or the name of a dimension that is free.
struct Dim {
  std::int64_t size = 0;  // 0 when it is named
  std::string name;

  bool operator==(const Dim& other) const { return size == other.size && name == other.name; }
};

struct TensorSpec {
  std::string name;
  DType dtype;
  std::vector<Dim> shape;
};

// Where a graph's input comes from: what a runtime fills it with.

// What an encoder reads; the same graph runs for either.
enum class Of { prompt, negative_prompt };

struct FromParameter {  // its value for each image [B], or of its shape [B, ...]
  std::string parameter;
  std::optional<Of> of;  // of an encoder: the text it is for; 0 for the other one
};
struct FromTokens {  // the ids of the text that the graph encodes [B, T]
  std::string tokenizer;
};
struct FromMask {  // 1 for each token of the text, and 0 for padding [B, T]
  std::string tokenizer;
};
struct FromGraph {  // what another graph makes of the prompt, or of the negative one
  std::string graph;
  std::string output;
  std::optional<Of> of;
  std::optional<std::int64_t> chunks;  // of an output by token: of how many runs it is
};
struct FromImage {  // a picture that the call brings [B, H, W, 3]
  std::string image;
  std::array<double, 2> range;
  std::optional<std::string> noise;  // parameter: standard deviation of noise on it
};
enum class Formula { time_ids, resolution, aspect_ratio, video_ids, frame_guidance_scale };
struct FromFormula {  // what the host computes [B, n]
  Formula formula;
};
struct FromCache {  // what an earlier step's graph wrote
  std::string cache;
};
struct FromLoop {  // a tensor of the step loop
  std::string loop;
};
using Origin = std::variant<FromParameter, FromTokens, FromMask, FromGraph, FromImage, FromFormula,
                            FromCache, FromLoop>;

const char* name_of(Formula formula);

struct InputSpec : TensorSpec {
  Origin origin;
};

// How a graph of the VAE is run on images that are larger than a tile; in pixels.
struct Tiles {
  std::int64_t size;     // sides of a tile; of a smaller image its own
  std::int64_t overlap;  // of neighbouring tiles: at least so many
};

struct Graph {
  std::string file;
  std::optional<std::string> weights;
  std::string precision;
  std::vector<InputSpec> inputs;
  std::vector<TensorSpec> outputs;
  std::optional<Tiles> tiles;
};

// A tensor that one step writes and a later one reads: an output of its name.
struct Cache {
  DType dtype;
  std::vector<Dim> shape;
  std::string kind;
  std::vector<std::string> layers;  // module path of each index on the layers axis
};

// times * ceil(latent_height / downsample) * ceil(latent_width / downsample)
struct Dimension {
  std::int64_t downsample;
  std::int64_t times;
};

// `step OP parameter + constant`, or `step % modulo OP parameter + constant`. The remainder is
// never negative.
struct Comparison {
  std::optional<std::string> modulo;
  std::string op;  // <, <=, ==, !=, >= or >
  std::optional<std::string> parameter;  // none: 0
  std::int64_t constant = 0;
};

// A phase, and all that has to hold for a step to run it.
struct Guard {
  std::string phase;
  std::vector<Comparison> all;
};

// A way to reuse computation over the steps of a run.
struct Method {
  std::vector<std::string> parameters;  // those that its rule reads
  Named<std::string> at_least;          // parameters that are at least as large as another one
  std::vector<Guard> rule;              // the first whose comparisons all hold; the last has none
};

// Smallest, usual and largest value; all equal when fixed.
struct Range {
  std::int64_t min;
  std::int64_t opt;
  std::int64_t max;

  bool contains(std::int64_t value) const { return min <= value && value <= max; }
};

std::string str(const Range& range);  // N or MIN:OPT:MAX

struct SamplerSpec {
  std::string file;
  std::int64_t max_steps;
};

struct TokenizerSpec {
  std::string file;
  std::int64_t max_length;
  std::int64_t pad_token_id;
  std::int64_t eos_token_id;
  std::optional<std::array<std::int64_t, 2>> columns;  // of the output by token, this one's
};

struct FileRecord {
  std::string sha256;
  std::uint64_t bytes;
};

// A LoRA file that changed the weights.
struct AppliedLora {
  std::string file;
  double scale;
};

// A textual inversion file whose vectors a token stands for.
struct AddedEmbedding {
  std::string file;
  std::string token;
};

struct Manifest {
  std::string name;
  std::string family;
  std::string source_kind;
  std::string source_model;
  std::string source_config;  // of a file: whose configurations it was built with; "" unless told
  std::string source_vae;     // file or folder of a VAE in place of its own; "" for its own
  std::vector<AppliedLora> source_loras;
  std::vector<AddedEmbedding> source_embeddings;
  std::string precision;
  Range batch;
  Range height;
  Range width;
  std::int64_t size_multiple;
  std::int64_t latent_channels;
  std::int64_t latent_downscale;
  std::optional<std::int64_t> frames;  // of a video
  Named<Parameter> parameters;         // besides size, seed and number of images
  Named<TokenizerSpec> tokenizers;
  std::string guidance;                // classifier-free, embedded or none
  std::string absent_negative_prompt;  // empty or zeros
  Named<Graph> graphs;
  Named<Method> methods;
  Named<Cache> caches;
  Named<Dimension> dimensions;
  Named<SamplerSpec> samplers;
  Named<FileRecord> files;

  // Throws Error when the bundle has no graph of that name.
  const Graph& graph(std::string_view name) const;
  const Method& method() const { return methods.begin()->second; }  // that runs use
  // Whether a method's rule names the graph.
  bool is_phase(std::string_view graph) const;
  // Whether there are negative prompts: an unconditional pass with embeddings of its own.
  bool takes_negative() const;
  // Whether a run has a prompt; a video is made from its image.
  bool takes_prompt() const;
  // The text encoder's outputs by token, and of how many runs the denoiser reads them.
  std::map<std::string, std::int64_t> chunks() const;
  // How many runs of the text encoder a prompt can have.
  std::int64_t prompt_chunks() const;
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
