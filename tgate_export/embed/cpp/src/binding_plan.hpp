// Which buffer goes to which tensor in which launch, decided before anything is launched.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <tgate/manifest.hpp>

namespace tgate {

// Buffers of the negative prompt have the names of the prompt's after this.
inline const std::string kNegative = "negative_";
// The graph that reads what is to be generated.
inline const std::string kPromptEncoder = "text_encoder";
inline const std::string kVaeDecoder = "vae_decoder";

using Shape = std::vector<std::int64_t>;

// A buffer, or one row of a buffer that holds a value for every step.
struct Slot {
  std::string buffer;
  int row = -1;  // -1: the whole
};

struct BufferSpec {
  DType dtype;
  Shape shape;   // of one row, as the graphs see it
  int rows = 0;  // 0 for a buffer that is a single tensor

  std::size_t row_elements() const;  // throws Error where no machine has so many
  std::size_t row_bytes() const { return row_elements() * bytes_of(dtype); }
  int slots() const { return rows ? rows : 1; }
};

using Buffers = std::map<std::string, BufferSpec>;

// The buffer that fills an input: equal origins share one. `negative`: its graph encodes the
// negative prompt.
std::string buffer_of(const InputSpec& tensor, bool negative = false);

// The buffer of one of the prompt encoder's outputs. It is the denoiser's, unless that reads several
// of them, of which `chunks` says how many: those are joined on the host.
std::string encoded_buffer(const std::map<std::string, std::int64_t>& chunks,
                           const std::string& output, bool negative);

// The buffer of a slot that `bytes` are copied to or from. Throws Error where there is no such
// buffer or row, or where it has another size: the manifest contradicts itself.
const BufferSpec& check_slot(const Buffers& buffers, const Slot& slot, std::size_t bytes);

using Bound = std::vector<std::pair<std::string, Slot>>;  // tensor -> slot

// One engine run with every tensor bound.
struct Launch {
  std::string graph;
  Bound inputs;
  Bound outputs;
};

// What the memory and the launches of a run depend on.
struct RunShape {
  std::int64_t batch;
  std::int64_t height;  // pixels
  std::int64_t width;
  std::vector<std::string> phases;  // the graph of every evaluation
  bool draws_noise;

  bool operator==(const RunShape& other) const;
};

struct Step {
  Launch denoiser;
  Launch sampler;
};

struct BindingPlan {
  Buffers buffers;
  std::vector<Launch> encode;  // for the prompt, and the negative one if there is one
  std::vector<Step> steps;
  Launch decode;
  Slot latents;  // the final ones

  std::vector<const Launch*> launches() const;
};

// Every cache has one buffer: a graph writes it where a later one reads it. The sample and the
// history alternate between two, so that the sampler never reads what it writes. Throws Error when
// a graph has a tensor that no buffer fits.
BindingPlan plan_run(const Manifest& manifest, const RunShape& shape);

}  // namespace tgate
