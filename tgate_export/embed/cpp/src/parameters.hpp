// The parameters of a call: completed with the bundle's defaults, and checked by its table.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include <tgate/manifest.hpp>
#include <tgate/request.hpp>

namespace tgate {

std::string text_of(const Scalar& value);  // 25, 7.5, 'ddim' or [64, 128]
double to_double(const Scalar& value);     // of an integer or a number

// "" or what is wrong with a value, as in "must be 0 to 1, got 2".
std::string fault_of(const Parameter& parameter, const Scalar& value);

using Given = std::map<std::string, ParameterValue>;

// What a request sets, in its own fields or by name. Throws Error, kind `request`.
Given given_parameters(const Request& request);

// One value for each prompt of all the bundle's parameters but pictures. Throws Error, kind
// `request`: names the parameter and what it may be.
Settings::Values parameter_values(const Manifest& manifest, const Given& given,
                                  std::size_t prompts);

// The values of the method's parameters in a run of `steps`, whose defaults give way to what is
// given. Throws Error, kind `request`, where two contradict each other.
std::map<std::string, std::int64_t> method_values(const Manifest& manifest, const Given& given,
                                                  std::int64_t steps);

}  // namespace tgate
