#include "step_plan.hpp"

#include <algorithm>
#include <stdexcept>

namespace tgate {
namespace {

using Values = std::map<std::string, std::int64_t>;
__extension__ using Wide = __int128;  // a sum of two of 64 bits

bool compare(std::int64_t left, const std::string& op, Wide right) {
  if (op == "<") return left < right;
  if (op == "<=") return left <= right;
  if (op == "==") return left == right;
  if (op == "!=") return left != right;
  if (op == ">=") return left >= right;
  return left > right;
}

bool holds(const Comparison& comparison, std::int64_t step, const Values& values) {
  std::int64_t left = step;
  if (comparison.modulo) {
    const std::int64_t divisor = values.at(*comparison.modulo);  // at least 1
    left = step % divisor;
    if (left < 0) left += divisor;  // never negative
  }
  const std::int64_t right = comparison.parameter ? values.at(*comparison.parameter) : 0;
  return compare(left, comparison.op, Wide(right) + comparison.constant);
}

}  // namespace

const Guard& guard_of(const Method& method, std::int64_t step, const Values& values) {
  const auto found =
      std::find_if(method.rule.begin(), method.rule.end(), [&](const Guard& guard) {
        return std::all_of(guard.all.begin(), guard.all.end(), [&](const Comparison& comparison) {
          return holds(comparison, step, values);
        });
      });
  if (found == method.rule.end()) throw std::logic_error("a step without a phase");
  return *found;
}

std::vector<const Guard*> plan_steps(const Method& method, const Values& values,
                                     const std::vector<int>& step_of_evaluation) {
  std::vector<const Guard*> guards;
  for (const int step : step_of_evaluation) guards.push_back(&guard_of(method, step, values));
  return guards;
}

}  // namespace tgate
