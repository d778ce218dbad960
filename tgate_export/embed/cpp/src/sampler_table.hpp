// A sampler as per-step weights: see engines/README.md, "Sampler tables".
#pragma once

#include <array>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace tgate {

constexpr int kHistory = 3;
constexpr int kNumWeights = 6 + kHistory;
constexpr int kNoiseWeight = 5 + kHistory;

using WeightRow = std::array<float, kNumWeights>;

// One step count of one scheduler.
struct SamplerSteps {
  int num_inference_steps = 0;
  std::vector<float> timesteps;  // of every evaluation
  float sample_scale = 0;        // unit-variance latents times this are the first sample
  float input_scale = 0;         // that times this is the first denoiser input
  std::vector<WeightRow> weights;
  std::vector<int> step_of_evaluation;  // ends with the last step; some are there twice (Heun)

  int extra_evaluations() const { return static_cast<int>(timesteps.size()) - num_inference_steps; }
  bool draws_noise() const;
};

struct SamplerTable {
  std::string name;
  std::map<int, SamplerSteps> steps;

  // Throws Error when there is no table for so many steps; says which there are.
  const SamplerSteps& for_steps(int num_inference_steps) const;
};

// Reads a table's text; `where` is what errors call it. Throws Error.
SamplerTable parse_sampler_table(std::string_view text, const std::string& where);

}  // namespace tgate
