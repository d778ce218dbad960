// Which of a bundle's plan sets runs a request on this machine. Pure, no devices.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "../binding_plan.hpp"
#include "../plans.hpp"

namespace tgate {

// What a plan has to fit: the GPU, such as "8.9", and the library that is loaded.
struct Machine {
  std::string library;
  std::string version;
  std::string compute_capability;
};

using InputShapes = std::map<std::string, std::map<std::string, Shape>>;  // graph -> input

InputShapes input_shapes(const BindingPlan& plan);

// The largest batch of at most so many images that a set takes; all, if none does.
int plan_batch_size(const std::vector<PlanSet>& sets, const Machine& machine, int images);

// The set that fits, one of a single shape before one of a range; without shapes the machine alone
// is looked at. `build` is the command that makes plans. Throws Error: what of each does not fit.
const PlanSet& choose_plans(const std::vector<PlanSet>& sets, const Machine& machine,
                            const InputShapes& shapes, const std::string& build);

}  // namespace tgate
