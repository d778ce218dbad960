#include "plan_choice.hpp"

#include <algorithm>
#include <limits>

#include <tgate/error.hpp>

#include "../text.hpp"

namespace tgate {
namespace {

// The first numbers of a version; what is no number counts as 0.
std::vector<int> numbers(const std::string& version, std::size_t count) {
  std::vector<int> found;
  for (std::size_t begin = 0; begin <= version.size() && found.size() < count;) {
    const std::size_t end = std::min(version.find('.', begin), version.size());
    found.push_back(std::atoi(version.substr(begin, end - begin).c_str()));
    begin = end + 1;
  }
  found.resize(count);
  return found;
}

bool runs_on_version(const PlanKey& key, const std::string& version) {
  if (!key.version_compatible) return key.version == version;
  const auto built = numbers(key.version, 3);
  const auto here = numbers(version, 3);
  return built[0] == here[0] && built <= here;
}

bool runs_on_gpu(const PlanKey& key, const std::string& capability) {
  // TensorRT's hardware-compatible plans run from Ampere, 8.0, on.
  if (key.hardware_compatible) return numbers(capability, 2) >= std::vector<int>{8, 0};
  const auto& built = key.compute_capabilities;
  return std::find(built.begin(), built.end(), capability) != built.end();
}

bool single_shape(const PlanSet& set) {
  for (const auto& [graph, plan] : set.plans) {
    for (const auto& [input, range] : plan.key.shapes) {
      if (!range.fixed()) return false;
    }
  }
  return true;
}

// What of a set does not fit; the first shape alone stands for all of them.
std::vector<std::string> misfits(const PlanSet& set, const Machine& machine,
                                 const InputShapes& shapes) {
  std::vector<std::string> found;
  const PlanKey& key = set.key();
  if (!runs_on_version(key, machine.version)) found.push_back("version " + key.version);
  if (!runs_on_gpu(key, machine.compute_capability)) {
    found.push_back("compute capability " + join(key.compute_capabilities, " and "));
  }
  for (const auto& [graph, inputs] : shapes) {
    const Plan* plan = set.plans.find(graph);
    if (plan == nullptr) {
      found.push_back("no plan of " + quote(graph));
      return found;
    }
    for (const auto& [tensor, shape] : inputs) {
      const ShapeRange* range = plan->key.shapes.find(tensor);
      if (range != nullptr && range->contains(shape)) continue;
      found.push_back(graph + "'s " + tensor + " " + (range ? str(*range) : "None") + ", not " +
                      str(ShapeRange{shape, shape, shape}));
      return found;
    }
  }
  return found;
}

}  // namespace

InputShapes input_shapes(const BindingPlan& plan) {
  InputShapes shapes;
  for (const Launch* launch : plan.launches()) {
    for (const auto& [tensor, slot] : launch->inputs) {
      shapes[launch->graph][tensor] = plan.buffers.at(slot.buffer).shape;
    }
  }
  return shapes;
}

int plan_batch_size(const std::vector<PlanSet>& sets, const Machine& machine, int images) {
  std::int64_t best = 0;
  for (const PlanSet& set : sets) {
    if (!misfits(set, machine, {}).empty()) continue;
    std::int64_t smallest = 1;
    std::int64_t largest = std::numeric_limits<std::int64_t>::max();
    for (const auto& [graph, plan] : set.plans) {
      for (const auto& [input, range] : plan.key.shapes) {
        if (range.min.empty() || range.max.empty()) continue;
        smallest = std::max(smallest, range.min[0]);
        largest = std::min(largest, range.max[0]);
      }
    }
    if (smallest <= images) best = std::max(best, std::min<std::int64_t>(largest, images));
  }
  return best ? static_cast<int>(best) : images;
}

const PlanSet& choose_plans(const std::vector<PlanSet>& sets, const Machine& machine,
                            const InputShapes& shapes, const std::string& build) {
  const PlanSet* chosen = nullptr;
  std::vector<std::string> listed;
  for (const PlanSet& set : sets) {
    const auto found = misfits(set, machine, shapes);
    if (found.empty() && (chosen == nullptr || (single_shape(set) && !single_shape(*chosen)))) {
      chosen = &set;
    }
    listed.push_back(set.path.filename().string() + ": " + join(found));
  }
  if (chosen != nullptr) return *chosen;
  throw Error(ErrorKind::backend,
              "no " + machine.library + " plans for " + machine.library + " " + machine.version +
                  " on compute capability " + machine.compute_capability + " fit (" +
                  join(listed, "; ") + "): make some with `" + build +
                  "`, or use --backend onnxruntime");
}

}  // namespace tgate
