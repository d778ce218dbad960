#include "step_plan.hpp"

namespace tgate {

const char* name_of(Phase phase) {
  switch (phase) {
    case Phase::full: return "full";
    case Phase::full_reuse: return "full_reuse";
    case Phase::gated: return "gated";
    default: return "gated_reuse";
  }
}

std::string step_plan_fault(int gate_step, const Intervals& intervals) {
  const auto at_least = [](const std::string& name, int least, int found) {
    return name + " must be at least " + std::to_string(least) + ", got " + std::to_string(found);
  };
  if (gate_step < 1) {
    return at_least("gate_step", 1, gate_step) +
           ": the first step always computes cross-attention, its outputs are what the gated "
           "steps reuse";
  }
  const std::string every_step = ": 1 computes self-attention in every step";
  if (intervals.sp_interval < 1) {
    return at_least("sp_interval", 1, intervals.sp_interval) + every_step;
  }
  if (intervals.fi_interval < 1) {
    return at_least("fi_interval", 1, intervals.fi_interval) + every_step;
  }
  if (intervals.warm_up < 0) return at_least("warm_up", 0, intervals.warm_up);
  if (gate_step < intervals.warm_up) {
    const std::string gate = std::to_string(gate_step);
    const std::string end = std::to_string(intervals.warm_up);
    return "gate_step " + gate + " is before the end of warm_up " + end +
           ": give a gate_step of at least " + end + ", or a warm_up of at most " + gate;
  }
  return {};
}

std::vector<Phase> tgate_plan(int num_inference_steps, int gate_step, int extra_evaluations,
                                 const Intervals& intervals) {
  std::vector<Phase> phases;
  for (int step = -extra_evaluations; step < num_inference_steps; ++step) {
    if (step >= gate_step) {
      phases.push_back(step % intervals.fi_interval == 0 ? Phase::gated : Phase::gated_reuse);
    } else {
      // Step gate_step - 1 writes what the gated steps read, so it always computes.
      const bool reuses = intervals.warm_up < step && step < gate_step - 1 &&
                          step % intervals.sp_interval != 0;
      phases.push_back(reuses ? Phase::full_reuse : Phase::full);
    }
  }
  return phases;
}

}  // namespace tgate
