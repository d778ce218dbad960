#pragma once

#include <tgate/manifest.hpp>

namespace tgate {

// Checks that what a manifest names is there, and of the shape that will be written to it. Throws
// RecordError. See tgate_export/bundle/manifest_checks.py: of several faults, the first is named.
void check_references(const Manifest& manifest);

}  // namespace tgate
