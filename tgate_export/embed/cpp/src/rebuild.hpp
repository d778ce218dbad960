// The command that builds a bundle again with something that it lacks.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <tgate/manifest.hpp>
#include <tgate/request.hpp>

#include "step_plan.hpp"

namespace tgate {

// Options of `tgate-export build` with their values.
using BuildOptions = std::vector<std::pair<std::string, std::string>>;

std::string rebuild_command(const Bundle& bundle, const BuildOptions& changes);

// Refuses a call whose graphs are not all in the bundle. Throws Error, kind `request`.
void check_graphs(const Bundle& bundle, const std::vector<Phase>& phases, const Settings& settings);

}  // namespace tgate
