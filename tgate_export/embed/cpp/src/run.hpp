// A run that is ready to launch: its buffers, and its bound launches.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "backends/backend.hpp"
#include "binding_plan.hpp"
#include "call.hpp"
#include "sampler_table.hpp"
#include "tiles.hpp"
#include "tokenizer.hpp"

namespace tgate {

// Reads tokenizers when a text first needs them.
class Tokenizers {
 public:
  explicit Tokenizers(const Bundle& bundle) : bundle_(bundle) {}

  const Tokenizer& get(const std::string& name);

 private:
  const Bundle& bundle_;
  std::map<std::string, Tokenizer> loaded_;
};

// The images `first`, `first + 1`, ... of a call, as many as the run's batch.
struct Part {
  const Call& call;
  int first;
};

// Buffers and launches for one run shape; every call of that shape uses them.
class PreparedRun {
 public:
  PreparedRun(Backend& backend, const Manifest& manifest, RunShape shape);

  const RunShape& shape() const { return shape_; }

  // Fills every buffer that the host makes; after this the loop only launches. Returns warnings.
  std::vector<std::string> write_inputs(Tokenizers& tokenizers, const Part& part,
                                        const SamplerSteps& sampler);
  // Runs the text encoder on the prompts, and on the negative ones where there are some.
  void encode(const Part& part);
  void denoise(std::size_t step) const { steps_[step].first(); }
  void solve(std::size_t step) const { steps_[step].second(); }
  void decode();

  Tensor latents_after(std::size_t step) const;  // [B,C,h,w]
  Tensor images();                               // [B,H,W,3] in [0, 1], after `decode`

 private:
  using Rows = std::vector<std::vector<std::int64_t>>;

  void write_prompts(Tokenizers& tokenizers, const Part& part, const Prompts& prompts,
                     bool negative, std::vector<std::string>& warnings);
  Rows token_ids(Tokenizers& tokenizers, const std::string& name, const TokenizerSpec& spec,
                 const Prompts& prompts, int first, std::vector<std::string>& warnings) const;
  void write_padded(const Slot& slot, const std::string& tokenizer, const Rows& rows, bool mask);
  void write_embeds(const std::string& slot, const Tensor& value, int first);
  void replace_negatives(const Part& part);
  void write_sampler(const SamplerSteps& sampler);
  void write_sample(const Part& part, const SamplerSteps& sampler);
  std::vector<float> draw(const Call& call, int first, std::size_t number) const;
  template <class T>
  void write(const Slot& slot, const std::vector<T>& values);
  Tensor read(const Slot& slot) const;

  const Manifest& manifest_;
  RunShape shape_;
  BindingPlan plan_;
  std::unique_ptr<Memory> memory_;
  std::vector<Execute> encode_;
  std::vector<std::pair<Execute, Execute>> steps_;
  Execute decode_;
  std::optional<Tiling> tiling_;  // where the image is decoded in tiles
  Tensor tiled_images_;
};

}  // namespace tgate
