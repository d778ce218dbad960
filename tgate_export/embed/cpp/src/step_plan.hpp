// Which graph each denoising step runs: a method's rule, evaluated before the first launch.
#pragma once

#include <map>
#include <string>
#include <vector>

#include <tgate/manifest.hpp>

namespace tgate {

// The guard of a step: the first whose comparisons all hold. The extra evaluations before step 0
// are -1, -2, ... `values` are those of the method's parameters.
const Guard& guard_of(const Method& method, std::int64_t step,
                      const std::map<std::string, std::int64_t>& values);

// The guard of every evaluation, by the step that it belongs to: all of a step run one phase.
std::vector<const Guard*> plan_steps(const Method& method,
                                     const std::map<std::string, std::int64_t>& values,
                                     const std::vector<int>& step_of_evaluation);

}  // namespace tgate
