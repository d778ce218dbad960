// Engines compiled from a bundle's graphs, and their records: see engines/README.md, "Plans".
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include <tgate/manifest.hpp>

namespace tgate {

struct ShapeRange {
  std::vector<std::int64_t> min, opt, max;

  bool fixed() const { return min == max; }
  bool contains(const std::vector<std::int64_t>& shape) const;
};
std::string str(const ShapeRange& range);

// What a plan depends on, as far as a runtime asks.
struct PlanKey {
  std::string library;  // tensorrt or tensorrt-rtx
  std::string version;
  std::vector<std::string> compute_capabilities;
  Named<ShapeRange> shapes;  // of every input
  bool hardware_compatible = false;
  bool version_compatible = false;
  bool weights_stripped = false;
};

struct Plan {
  std::string file;
  FileRecord content;
  PlanKey key;
};

// A folder of plans that were compiled together; never empty.
struct PlanSet {
  std::filesystem::path path;
  Named<Plan> plans;  // by graph

  // Library, version, GPUs and settings are the same in all.
  const PlanKey& key() const { return plans.begin()->second.key; }
};

// Reads and checks every plan set of a bundle: complete, unchanged, of these graphs. Throws Error.
std::vector<PlanSet> check_plan_sets(const Bundle& bundle, bool check_hashes);

}  // namespace tgate
