// Which graph each denoising step runs: see engines/README.md, "A run".
#pragma once

#include <string>
#include <vector>

namespace tgate {

enum class Phase { full, full_reuse, gated, gated_reuse };

const char* name_of(Phase phase);

struct Intervals {
  int sp_interval = 1;
  int fi_interval = 1;
  int warm_up = 0;
};

// "" or what makes no schedule, for any number of steps.
std::string step_plan_fault(int gate_step, const Intervals& intervals);

// The graph of every evaluation: `extra_evaluations` before step 0 (PNDM: one), then the steps.
std::vector<Phase> tgate_plan(int num_inference_steps, int gate_step, int extra_evaluations,
                                 const Intervals& intervals);

}  // namespace tgate
