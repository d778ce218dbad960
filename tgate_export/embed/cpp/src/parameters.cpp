#include "parameters.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include <tgate/error.hpp>

#include "text.hpp"

namespace tgate {
namespace {

[[noreturn]] void refuse(const std::string& name, const std::string& message) {
  throw Error(ErrorKind::request, message, name);
}

// Holds every integer and every number as it is.
long double wide(const Scalar& value) {
  if (const auto* integer = std::get_if<std::int64_t>(&value)) {
    return static_cast<long double>(*integer);
  }
  return static_cast<long double>(std::get<double>(value));
}

bool is_number(const Scalar& value) {
  return std::holds_alternative<std::int64_t>(value) || std::holds_alternative<double>(value);
}

std::string limit_fault(const Parameter& parameter, const Scalar& value) {
  const auto& [min, max, above] = std::tie(parameter.min, parameter.max, parameter.above);
  const std::string got = ", got " + text_of(value);
  const long double number = wide(value);
  // In the 32 bits that tensors have for it.
  if (!(std::abs(number) <= std::numeric_limits<float>::max())) {
    return "must be a finite number" + got;
  }
  if (above && number <= wide(*above)) return "must be above " + text_of(*above) + got;
  if (min && max && (number < wide(*min) || number > wide(*max))) {
    return "must be " + text_of(*min) + " to " + text_of(*max) + got;
  }
  if (min && number < wide(*min)) {
    const std::string& because = parameter.because;
    return "must be at least " + text_of(*min) + got + (because.empty() ? "" : ": " + because);
  }
  if (max && number > wide(*max)) return "must be at most " + text_of(*max) + got;
  return {};
}

// Parameters that many bundles lack.
struct Declared {
  const char* name;
  const char* absent;          // why
  std::optional<double> inert;  // values up to this change nothing
  double min;
  const char* inert_choice = nullptr;  // a choice that changes nothing
};

constexpr const char* kSdxl = "it is for SDXL, and this bundle's model is not told it";
constexpr const char* kNewer =
    "this bundle was built without classifier-free guidance, or by an earlier version and is to be "
    "built again";
constexpr double kLowest = std::numeric_limits<double>::lowest();
constexpr Declared kDeclared[] = {
    {"guidance_scale", "this bundle was built without guidance", 1.0, kLowest},
    {"guidance_rescale", "this bundle's guidance is never rescaled", 0.0, 0.0},
    {"cache_blend", kNewer, std::nullopt, 0.0},
    {"guidance_carry", kNewer, 0.0, 0.0},
    {"clip_skip", "this bundle's text encoder cannot skip layers", 0.0, 0.0},
    {"prompt_syntax",
     "this bundle's text encoder is not CLIP, or an earlier version built it and it is to be built "
     "again",
     std::nullopt, 0.0, "plain"},
    {"original_size", kSdxl, std::nullopt, 0.0},
    {"crops_coords_top_left", kSdxl, std::nullopt, 0.0},
    {"target_size", kSdxl, std::nullopt, 0.0},
};

std::vector<Scalar> scalars_of(const ParameterValue& value) {
  if (const auto* one = std::get_if<Scalar>(&value)) return {*one};
  return std::get<std::vector<Scalar>>(value);
}

// Refuses a parameter that a bundle lacks, unless its value changes nothing.
void check_absent(const Manifest& manifest, const std::string& name, const ParameterValue& value) {
  const auto* declared = std::find_if(std::begin(kDeclared), std::end(kDeclared),
                                      [&](const Declared& entry) { return entry.name == name; });
  if (declared == std::end(kDeclared)) {
    std::vector<std::string> names;
    for (const auto& [known, entry] : manifest.parameters) names.push_back(known);
    refuse(name, "this bundle has no parameter " + quote(name) + ": it has " + join(names));
  }
  for (const Scalar& one : scalars_of(value)) {
    const bool inert = declared->inert && is_number(one) && to_double(one) <= *declared->inert &&
                       to_double(one) >= declared->min;
    const bool inert_choice = declared->inert_choice && one == Scalar(declared->inert_choice);
    if (!inert && !inert_choice) {
      refuse(name, name + " " + text_of(one) + " has no effect: " + declared->absent +
                       "; leave it out");
    }
  }
}

// A value in the type that runs have.
Scalar checked(const std::string& name, const Parameter& parameter, const Scalar& value) {
  if (const std::string fault = fault_of(parameter, value); !fault.empty()) {
    refuse(name, name + " " + fault);
  }
  return parameter.type == ParameterType::number ? Scalar(to_double(value)) : value;
}

std::vector<std::optional<Scalar>> each(const std::string& name, const Parameter& parameter,
                                        const ParameterValue* value, std::size_t prompts) {
  if (value == nullptr) return {prompts, parameter.default_value};
  const std::vector<Scalar> scalars = scalars_of(*value);
  if (!parameter.per_prompt && std::holds_alternative<std::vector<Scalar>>(*value)) {
    refuse(name, name + " is the same for all prompts of a call: give one value");
  }
  std::vector<std::optional<Scalar>> values;
  for (const Scalar& one : scalars) values.emplace_back(checked(name, parameter, one));
  if (values.size() != 1 && values.size() != prompts) {
    refuse(name, std::to_string(values.size()) + " values of " + name + " for " +
                     std::to_string(prompts) + " prompts: give one, or one each");
  }
  if (values.size() == 1) values.assign(prompts, values[0]);
  return values;
}

const ParameterValue* find(const Given& given, const std::string& name) {
  const auto found = given.find(name);
  return found == given.end() ? nullptr : &found->second;
}

// A default that keeps its place when fewer or more steps are asked for.
std::int64_t scaled(const Manifest& manifest, const Parameter& parameter, std::int64_t value,
                    std::int64_t steps) {
  const Parameter* usual = manifest.parameters.find("num_inference_steps");
  const auto usual_steps = std::max<std::int64_t>(1, std::get<std::int64_t>(*usual->default_value));
  const double place = std::nearbyint(static_cast<double>(value) * static_cast<double>(steps) /
                                      static_cast<double>(usual_steps));
  const double least = parameter.min ? to_double(*parameter.min) : 0.0;
  constexpr double kMost = 0x1p53;  // above any number of steps
  return static_cast<std::int64_t>(std::clamp(place, std::clamp(least, -kMost, kMost), kMost));
}

}  // namespace

const char* name_of(ParameterType type) {
  switch (type) {
    case ParameterType::integer: return "integer";
    case ParameterType::number: return "number";
    case ParameterType::choice: return "choice";
    case ParameterType::pair: return "pair";
    default: return "image";
  }
}

std::string text_of(const Scalar& value) {
  if (const auto* integer = std::get_if<std::int64_t>(&value)) return std::to_string(*integer);
  if (const auto* number = std::get_if<double>(&value)) return number_text(*number);
  if (const auto* text = std::get_if<std::string>(&value)) return quote(*text);
  const auto& pair = std::get<std::array<int, 2>>(value);
  return shape_text({pair[0], pair[1]});
}

double to_double(const Scalar& value) { return static_cast<double>(wide(value)); }

std::string fault_of(const Parameter& parameter, const Scalar& value) {
  switch (parameter.type) {
    case ParameterType::choice: {
      const auto* text = std::get_if<std::string>(&value);
      const auto& choices = parameter.choices;
      const bool known =
          text && std::find(choices.begin(), choices.end(), *text) != choices.end();
      return known ? "" : "must be one of " + join(choices) + ", got " + text_of(value);
    }
    case ParameterType::pair: {
      const auto* pair = std::get_if<std::array<int, 2>>(&value);
      const bool fits = pair && (*pair)[0] >= 0 && (*pair)[1] >= 0;
      return fits ? "" : "must be two whole numbers of pixels, got " + text_of(value);
    }
    case ParameterType::integer:
      if (!std::holds_alternative<std::int64_t>(value)) {
        return "must be a whole number, got " + text_of(value);
      }
      return limit_fault(parameter, value);
    case ParameterType::number:
      if (!is_number(value)) return "must be a number, got " + text_of(value);
      return limit_fault(parameter, value);
    default: return {};  // whoever is given one finds out
  }
}

Given given_parameters(const Request& request) {
  Given given = request.parameters;
  const auto add = [&](const char* name, ParameterValue value) {
    if (!given.emplace(name, std::move(value)).second) {
      refuse(name, std::string(name) + " is set twice: as a field of the request and by name");
    }
  };
  const auto set = [&](const char* name, const auto& field) {
    if (field) add(name, Scalar(*field));
  };
  set("num_inference_steps", request.num_inference_steps);
  set("gate_step", request.gate_step);
  set("sp_interval", request.sp_interval);
  set("fi_interval", request.fi_interval);
  set("warm_up", request.warm_up);
  if (!request.guidance_scale.empty()) {
    add("guidance_scale",
        std::vector<Scalar>(request.guidance_scale.begin(), request.guidance_scale.end()));
  }
  set("guidance_rescale", request.guidance_rescale);
  set("clip_skip", request.clip_skip);
  set("prompt_syntax", request.prompt_syntax);
  set("scheduler", request.scheduler);
  set("original_size", request.original_size);
  set("crops_coords_top_left", request.crops_coords_top_left);
  set("target_size", request.target_size);
  return given;
}

Settings::Values parameter_values(const Manifest& manifest, const Given& given,
                                  std::size_t prompts) {
  for (const auto& [name, value] : given) {
    const Parameter* parameter = manifest.parameters.find(name);
    if (parameter == nullptr) {
      check_absent(manifest, name, value);
    } else if (parameter->type == ParameterType::image) {
      refuse(name, name + " is a picture: give it in the request's images");
    }
  }
  Settings::Values values;
  for (const auto& [name, parameter] : manifest.parameters) {
    if (parameter.type == ParameterType::image) continue;
    values.add(name, each(name, parameter, find(given, name), prompts));
  }
  return values;
}

std::map<std::string, std::int64_t> method_values(const Manifest& manifest, const Given& given,
                                                  std::int64_t steps) {
  const Method& method = manifest.method();
  std::map<std::string, std::int64_t> values;
  for (const std::string& name : method.parameters) {
    const Parameter& parameter = *manifest.parameters.find(name);
    if (const ParameterValue* value = find(given, name)) {
      const std::vector<Scalar> scalars = scalars_of(*value);
      if (scalars.size() != 1) refuse(name, name + " is the same for all prompts: give one value");
      values[name] = std::get<std::int64_t>(scalars[0]);
    } else {
      const auto usual = std::get<std::int64_t>(*parameter.default_value);
      values[name] = parameter.scaled ? scaled(manifest, parameter, usual, steps) : usual;
    }
  }
  for (const auto& [name, least] : method.at_least) {
    if (values[name] >= values[least]) continue;
    if (find(given, name) == nullptr) {
      values[name] = values[least];
    } else if (find(given, least) == nullptr) {
      values[least] = values[name];
    } else {
      const std::string value = std::to_string(values[name]);
      const std::string limit = std::to_string(values[least]);
      refuse(name, name + " " + value + " is below " + least + " " + limit + ": give a " + name +
                       " of at least " + limit + ", or a " + least + " of at most " + value);
    }
  }
  for (const auto& [name, value] : values) {  // one that follows another may have become too small
    const auto& min = manifest.parameters.find(name)->min;
    if (min && static_cast<long double>(value) < wide(*min)) {
      refuse(name, name + " must be at least " + text_of(*min) + ", got " + std::to_string(value));
    }
  }
  return values;
}

}  // namespace tgate
