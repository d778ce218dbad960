// A run that is ready to launch: its buffers, and its bound launches.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "backends/backend.hpp"
#include "binding_plan.hpp"
#include "call.hpp"
#include "sampler_table.hpp"
#include "text_encoder.hpp"
#include "tiles.hpp"

namespace tgate {

// Buffers and launches for one run shape; every call of that shape uses them.
class PreparedRun {
 public:
  PreparedRun(Backend& backend, const Manifest& manifest, RunShape shape);

  const RunShape& shape() const { return shape_; }

  // Fills every buffer that the host makes; after this the loop only launches. Returns warnings.
  std::vector<std::string> write_inputs(Tokenizers& tokenizers, const Part& part,
                                        const SamplerSteps& sampler);
  // Runs the text encoder on the prompts, and on the negative ones where there are some.
  void encode(const Part& part) { encoder_.encode(part); }
  void denoise(std::size_t step) const { steps_[step].first(); }
  void solve(std::size_t step) const { steps_[step].second(); }
  void decode();

  Tensor latents_after(std::size_t step) const;  // [B,C,h,w]
  Tensor images();                               // [B,H,W,3] in [0, 1], after `decode`

 private:
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
  TextEncoder encoder_;
  std::vector<std::pair<Execute, Execute>> steps_;
  Execute decode_;
  std::optional<Tiling> tiling_;  // where the image is decoded in tiles
  Tensor tiled_images_;
};

}  // namespace tgate
