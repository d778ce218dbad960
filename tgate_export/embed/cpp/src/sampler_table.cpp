#include "sampler_table.hpp"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <stdexcept>

#include <tgate/error.hpp>

#include "json_reader.hpp"
#include "python_text.hpp"
#include "unicode.hpp"

namespace tgate {
namespace {

constexpr int kSchemaVersion = 1;

// What a field is called where it is, as in "steps[3].weights".
[[noreturn]] void refuse(const std::string& where, const std::string& fault) {
  throw std::invalid_argument(where + fault);
}

enum class Kind { integer, number, text, list };

struct FieldSpec {
  const char* name;
  Kind kind;
};

void check_fields(const Json& found, const std::string& where,
                  std::initializer_list<FieldSpec> expected) {
  if (!found.is_object()) {
    refuse(where.empty() ? "document" : where,
           std::string(": expected an object, ") + python_type(found));
  }
  for (const FieldSpec& field : expected) {
    const auto value = found.find(field.name);
    if (value == found.end()) refuse(where + field.name, ": missing");
    const auto [name, fits] = [&]() -> std::pair<const char*, bool> {
      switch (field.kind) {
        case Kind::integer: return {"int", value->is_number_integer()};
        case Kind::number: return {"float", value->is_number()};
        case Kind::text: return {"str", value->is_string()};
        default: return {"list", value->is_array()};
      }
    }();
    if (!fits) {
      refuse(where + field.name,
             std::string(": expected ") + name + ", found " + python_type(*value));
    }
  }
  for (const auto& [key, value] : found.items()) {
    const bool known = std::any_of(expected.begin(), expected.end(),
                                   [&, &name = key](const FieldSpec& f) { return f.name == name; });
    if (!known) refuse(where + key, ": unknown field");
  }
}

void check_number(const Json& value, const std::string& where) {
  if (!value.is_number()) refuse(where, std::string(": expected a number, ") + python_type(value));
}

void check_rows(const Json& rows, const std::string& where) {
  for (std::size_t row = 0; row < rows.size(); ++row) {
    const std::string place = where + "[" + std::to_string(row) + "]";
    if (!rows[row].is_array()) {
      refuse(place, std::string(": expected a list, ") + python_type(rows[row]));
    }
    if (rows[row].size() != kNumWeights) {
      refuse(place, ": expected " + std::to_string(kNumWeights) + " numbers, found " +
                        std::to_string(rows[row].size()));
    }
    for (std::size_t i = 0; i < kNumWeights; ++i) {
      check_number(rows[row][i], place + "[" + std::to_string(i) + "]");
    }
  }
}

float to_float(const Json& value, const std::string& where) {
  const auto number = static_cast<float>(value.get<double>());
  if (!std::isfinite(number)) refuse(where, ": not finite in 32 bits");
  return number;
}

std::vector<WeightRow> to_rows(const Json& rows, const std::string& where) {
  std::vector<WeightRow> weights(rows.size());
  for (std::size_t row = 0; row < rows.size(); ++row) {
    for (std::size_t i = 0; i < kNumWeights; ++i) weights[row][i] = to_float(rows[row][i], where);
  }
  return weights;
}

// Checks how a run begins with an image; returns how many rows are its own.
std::size_t check_start(const Json& start, const std::string& where) {
  check_fields(start, where,
               {{"image_scale", Kind::number}, {"sample_scale", Kind::number},
                {"input_scale", Kind::number}, {"weights", Kind::list}});
  check_rows(start["weights"], where + "weights");
  to_rows(start["weights"], where + "weights");
  for (const char* field : {"image_scale", "sample_scale", "input_scale"}) {
    to_float(start[field], where + field);
  }
  return start["weights"].size();
}

int to_count(const Json& value) {
  // Far above any number of steps, and below what an int holds.
  constexpr std::int64_t kMost = 1 << 30;
  if (value.is_number_unsigned() && value.get<std::uint64_t>() > kMost) return kMost;
  return static_cast<int>(std::max(value.get<std::int64_t>(), -kMost));
}

SamplerSteps read_steps(const Json& entry, const std::string& where,
                       const std::map<int, SamplerSteps>& before) {
  check_fields(entry, where,
               {{"num_inference_steps", Kind::integer}, {"sample_scale", Kind::number},
                {"input_scale", Kind::number}, {"timesteps", Kind::list},
                {"weights", Kind::list}, {"starts", Kind::list}});
  const Json& timesteps = entry["timesteps"];
  for (std::size_t i = 0; i < timesteps.size(); ++i) {
    check_number(timesteps[i], where + "timesteps[" + std::to_string(i) + "]");
  }
  check_rows(entry["weights"], where + "weights");
  SamplerSteps steps;
  steps.num_inference_steps = to_count(entry["num_inference_steps"]);
  const std::string count = std::to_string(steps.num_inference_steps);
  if (before.count(steps.num_inference_steps)) {
    refuse(where + "num_inference_steps: ", count + " is there twice");
  }
  std::vector<std::size_t> starts;
  for (const Json& start : entry["starts"]) {
    starts.push_back(
        check_start(start, where + "starts[" + std::to_string(starts.size()) + "]."));
  }
  if (steps.num_inference_steps < 1) {
    refuse(where, "num_inference_steps: expected 1 or more, " + count);
  }
  for (const Json& value : timesteps) {
    steps.timesteps.push_back(to_float(value, where + "timesteps"));
  }
  steps.weights = to_rows(entry["weights"], where + "weights");
  const auto evaluations = static_cast<std::int64_t>(timesteps.size());
  if (evaluations < steps.num_inference_steps) {
    refuse(where, "timesteps: expected " + count + " numbers or more, found shape " +
                      repr(std::vector<std::int64_t>{evaluations}));
  }
  if (steps.weights.size() != timesteps.size()) {
    const auto rows = static_cast<std::int64_t>(steps.weights.size());
    const auto found = rows ? std::vector<std::int64_t>{rows, kNumWeights}
                            : std::vector<std::int64_t>{0};
    refuse(where, "weights: expected shape " + repr({evaluations, kNumWeights}) + ", found " +
                      repr(found));
  }
  if (!starts.empty() && starts.size() != static_cast<std::size_t>(steps.num_inference_steps)) {
    refuse(where,
           "starts: expected none or " + count + ", found " + std::to_string(starts.size()));
  }
  for (std::size_t i = 0; i < starts.size(); ++i) {
    if (starts[i] > timesteps.size() - i) {
      refuse(where, "starts[" + std::to_string(i) + "].weights: expected " +
                        std::to_string(timesteps.size() - i) + " rows at most, found " +
                        std::to_string(starts[i]));
    }
  }
  steps.sample_scale = to_float(entry["sample_scale"], where + "sample_scale");
  steps.input_scale = to_float(entry["input_scale"], where + "input_scale");
  return steps;
}

SamplerTable read_table(const Json& json) {
  check_fields(json, "",
               {{"schema_version", Kind::integer}, {"history", Kind::integer},
                {"extra_evaluations", Kind::integer}, {"name", Kind::text},
                {"scheduler_class", Kind::text}, {"prediction_type", Kind::text},
                {"residual", Kind::number}, {"steps", Kind::list}});
  if (json["schema_version"] != kSchemaVersion) {
    refuse("schema_version: expected 1, ", json["schema_version"].dump());
  }
  SamplerTable table;
  table.name = json["name"].get<std::string>();
  std::size_t index = 0;
  for (const Json& entry : json["steps"]) {
    SamplerSteps steps =
        read_steps(entry, "steps[" + std::to_string(index++) + "].", table.steps);
    table.steps.emplace(steps.num_inference_steps, std::move(steps));
  }
  const int history = to_count(json["history"]);
  if (history < 0 || history > kHistory) {
    refuse("history: expected 0 to 3, found ", json["history"].dump());
  }
  const auto residual = json["residual"].get<double>();
  if (!std::isfinite(residual) || residual < 0) {
    refuse("residual: expected a finite number >= 0, found ", python_repr(json["residual"]));
  }
  if (table.steps.empty()) refuse("", "steps: expected one step count or more, found none");
  int most = 0;
  for (const auto& [count, steps] : table.steps) most = std::max(most, steps.extra_evaluations());
  if (json["extra_evaluations"] != most) {
    refuse("extra_evaluations: ",
           json["extra_evaluations"].dump() + ", but steps have " + std::to_string(most));
  }
  return table;
}

// Counts, compactly: 1-20, 25.
std::string ranges(const std::map<int, SamplerSteps>& steps) {
  std::vector<std::pair<int, int>> runs;
  for (const auto& [count, entry] : steps) {
    if (!runs.empty() && runs.back().second == count - 1) {
      runs.back().second = count;
    } else {
      runs.emplace_back(count, count);
    }
  }
  std::vector<std::string> parts;
  for (const auto& [first, last] : runs) {
    parts.push_back(std::to_string(first) + (first == last ? "" : "-" + std::to_string(last)));
  }
  return join(parts);
}

}  // namespace

bool SamplerSteps::draws_noise() const {
  return std::any_of(weights.begin(), weights.end(),
                     [](const WeightRow& row) { return row[kNoiseWeight] != 0; });
}

const SamplerSteps& SamplerTable::for_steps(int num_inference_steps) const {
  const auto found = steps.find(num_inference_steps);
  if (found != steps.end()) return found->second;
  throw Error(ErrorKind::request, "scheduler " + repr(name) + " has no table for " +
                                      std::to_string(num_inference_steps) +
                                      " steps; available: " + ranges(steps));
}

SamplerTable parse_sampler_table(std::string_view text, const std::string& where) {
  try {
    if (!is_utf8(text)) throw std::invalid_argument("it is not UTF-8");
    return read_table(parse_json(text));
  } catch (const std::invalid_argument& error) {
    throw Error(ErrorKind::bundle, where + " is not a sampler table: " + error.what() +
                                       ": build the bundle again");
  }
}

}  // namespace tgate
