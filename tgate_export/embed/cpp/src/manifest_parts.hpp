// The parts of a manifest that say how a run goes. Each reader throws RecordError. Fields are in
// the order of tgate_export/bundle/manifest.py: of several faults, the first is named.
#pragma once

#include <string>

#include <tgate/manifest.hpp>

#include "json_reader.hpp"

namespace tgate {

std::string read_precision(const Value& value);
Parameter read_parameter(const Value& value);
Graph read_graph(const Value& value);
Method read_method(const Value& value);
Cache read_cache(const Value& value);

}  // namespace tgate
