// The command that builds a bundle again with something that it lacks.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include <tgate/manifest.hpp>

namespace tgate {

// Options of `tgate-export build` with their values.
using BuildOptions = std::vector<std::pair<std::string, std::string>>;

std::string rebuild_command(const Bundle& bundle, const BuildOptions& changes);

// Refuses a call whose graphs are not all in the bundle: of a step whose guard tells steps apart by
// an interval, with the command that builds it for that. Throws Error.
void check_graphs(const Bundle& bundle, const std::vector<const Guard*>& steps,
                  const std::map<std::string, std::int64_t>& values);

}  // namespace tgate
