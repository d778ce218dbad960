#include "sampler_table.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <stdexcept>

#include <tgate/error.hpp>

#include "json_reader.hpp"
#include "text.hpp"
#include "unicode.hpp"

namespace tgate {
namespace {

constexpr int kSchemaVersion = 2;

[[noreturn]] void refuse(const std::string& path, const std::string& fault) {
  throw RecordError(path, fault);
}

// Paths of what is in the object or the list at a path.
std::string inside(const std::string& path, const std::string& field) {
  return path.empty() ? field : path + "." + field;
}
std::string inside(const std::string& path, std::size_t index) {
  return path + "." + std::to_string(index);
}

enum class Kind { integer, number, text, list };

struct FieldSpec {
  const char* name;
  Kind kind;
};

void check_fields(const Json& found, const std::string& path,
                  std::initializer_list<FieldSpec> expected) {
  if (!found.is_object()) refuse(path, "it must be an object");
  for (const FieldSpec& field : expected) {
    const std::string where = inside(path, field.name);
    const auto value = found.find(field.name);
    if (value == found.end()) refuse(where, "it is missing");
    switch (field.kind) {
      case Kind::integer:
        if (!value->is_number_integer()) refuse(where, "it must be a whole number");
        break;
      case Kind::number:
        if (!value->is_number()) refuse(where, "it must be a number");
        break;
      case Kind::text:
        if (!value->is_string()) refuse(where, "it must be a text");
        break;
      default:
        if (!value->is_array()) refuse(where, "it must be a list");
    }
  }
  for (const auto& [key, value] : found.items()) {
    const bool known = std::any_of(expected.begin(), expected.end(),
                                   [&, &name = key](const FieldSpec& f) { return f.name == name; });
    if (!known) refuse(inside(path, key), "no field has that name");
  }
}

// Each is there a thousand times: its path is made when it is wrong.
void check_numbers(const Json& values, const std::string& path) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!values[i].is_number()) refuse(inside(path, i), "it must be a number");
  }
}

void check_rows(const Json& rows, const std::string& path) {
  for (std::size_t row = 0; row < rows.size(); ++row) {
    const std::string where = inside(path, row);
    if (!rows[row].is_array()) refuse(where, "it must be a list");
    if (rows[row].size() != kNumWeights) {
      refuse(where, "it must have " + std::to_string(kNumWeights) + " numbers, not " +
                        std::to_string(rows[row].size()));
    }
    check_numbers(rows[row], where);
  }
}

float to_float(const Json& value, const std::string& path) {
  const auto number = static_cast<float>(value.get<double>());
  if (!std::isfinite(number)) refuse(path, "it is not finite in 32 bits");
  return number;
}

std::vector<WeightRow> to_rows(const Json& rows, const std::string& path) {
  std::vector<WeightRow> weights(rows.size());
  for (std::size_t row = 0; row < rows.size(); ++row) {
    for (std::size_t i = 0; i < kNumWeights; ++i) weights[row][i] = to_float(rows[row][i], path);
  }
  return weights;
}

// Checks how a run begins with an image; returns how many rows are its own.
std::size_t check_start(const Json& start, const std::string& path) {
  check_fields(start, path,
               {{"image_scale", Kind::number}, {"sample_scale", Kind::number},
                {"input_scale", Kind::number}, {"weights", Kind::list}});
  check_rows(start["weights"], inside(path, "weights"));
  to_rows(start["weights"], inside(path, "weights"));
  for (const char* field : {"image_scale", "sample_scale", "input_scale"}) {
    to_float(start[field], inside(path, field));
  }
  return start["weights"].size();
}

int to_count(const Json& value) {
  // Far above any number of steps, and below what an int holds.
  constexpr std::int64_t kMost = 1 << 30;
  if (value.is_number_unsigned() && value.get<std::uint64_t>() > kMost) return kMost;
  return static_cast<int>(std::max(value.get<std::int64_t>(), -kMost));
}

std::vector<int> to_steps(const Json& values, const std::string& path) {
  std::vector<int> steps;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const bool whole = values[i].is_number_integer();
    const auto value = whole ? values[i].get<std::int64_t>() : std::int64_t{0};
    constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
    const bool huge = values[i].is_number_unsigned() && values[i].get<std::uint64_t>() > kMost;
    if (!whole || huge || value < -kMost) refuse(inside(path, i), "it must be a whole number of 32 bits");
    steps.push_back(static_cast<int>(value));
  }
  return steps;
}

// Whether numbers, at least one, end with the last step and leave none out.
bool are_steps(const std::vector<int>& numbers, int num_inference_steps) {
  const auto gap = [](int before, int after) {
    return after != before && std::int64_t{after} != std::int64_t{before} + 1;
  };
  return !numbers.empty() && numbers.front() <= 0 && numbers.back() == num_inference_steps - 1 &&
         std::adjacent_find(numbers.begin(), numbers.end(), gap) == numbers.end();
}

SamplerSteps read_steps(const Json& entry, const std::string& path,
                        const std::map<int, SamplerSteps>& before) {
  check_fields(entry, path,
               {{"num_inference_steps", Kind::integer}, {"sample_scale", Kind::number},
                {"input_scale", Kind::number}, {"timesteps", Kind::list},
                {"weights", Kind::list}, {"step_of_evaluation", Kind::list},
                {"starts", Kind::list}});
  const auto at = [&](const char* field) { return inside(path, field); };
  const Json& timesteps = entry["timesteps"];
  check_numbers(timesteps, at("timesteps"));
  check_rows(entry["weights"], at("weights"));
  SamplerSteps steps;
  steps.step_of_evaluation = to_steps(entry["step_of_evaluation"], at("step_of_evaluation"));
  steps.num_inference_steps = to_count(entry["num_inference_steps"]);
  const std::string count = std::to_string(steps.num_inference_steps);
  if (before.count(steps.num_inference_steps)) {
    refuse(at("num_inference_steps"), count + " is there twice");
  }
  std::vector<std::size_t> starts;
  for (const Json& start : entry["starts"]) {
    starts.push_back(check_start(start, inside(at("starts"), starts.size())));
  }
  if (steps.num_inference_steps < 1) {
    refuse(at("num_inference_steps"), "it must be at least 1, not " + count);
  }
  for (const Json& value : timesteps) {
    steps.timesteps.push_back(to_float(value, at("timesteps")));
  }
  steps.weights = to_rows(entry["weights"], at("weights"));
  const std::string evaluations = std::to_string(timesteps.size());
  if (timesteps.size() < static_cast<std::size_t>(steps.num_inference_steps)) {
    refuse(at("timesteps"), "it must have " + count + " numbers or more, not " + evaluations);
  }
  if (steps.weights.size() != timesteps.size()) {
    refuse(at("weights"), "it must have " + evaluations + " rows, one for each timestep, not " +
                              std::to_string(steps.weights.size()));
  }
  const std::vector<int>& numbers = steps.step_of_evaluation;
  if (numbers.size() != timesteps.size() || !are_steps(numbers, steps.num_inference_steps)) {
    refuse(at("step_of_evaluation"), "it must have " + evaluations +
                                         " numbers that grow by 0 or 1 up to the last step, from "
                                         "0 or less on");
  }
  if (!starts.empty() && starts.size() != static_cast<std::size_t>(steps.num_inference_steps)) {
    refuse(at("starts"),
           "it must have no entry or " + count + ", not " + std::to_string(starts.size()));
  }
  for (std::size_t i = 0; i < starts.size(); ++i) {
    const int first = numbers.front() + static_cast<int>(i);  // what is before step 0 always is
    const auto most = static_cast<std::size_t>(
        numbers.end() - std::lower_bound(numbers.begin(), numbers.end(), first));
    if (starts[i] > most) {
      refuse(inside(inside(at("starts"), i), "weights"),
             "it must have " + std::to_string(most) + " rows at most, not " +
                 std::to_string(starts[i]));
    }
  }
  steps.sample_scale = to_float(entry["sample_scale"], at("sample_scale"));
  steps.input_scale = to_float(entry["input_scale"], at("input_scale"));
  return steps;
}

SamplerTable read_table(const Json& json) {
  check_fields(json, "",
               {{"schema_version", Kind::integer}, {"history", Kind::integer},
                {"extra_evaluations", Kind::integer}, {"name", Kind::text},
                {"scheduler_class", Kind::text}, {"prediction_type", Kind::text},
                {"residual", Kind::number}, {"steps", Kind::list}});
  if (json["schema_version"] != kSchemaVersion) {
    refuse("schema_version", "it must be 2, not " + json["schema_version"].dump());
  }
  SamplerTable table;
  table.name = json["name"].get<std::string>();
  std::size_t index = 0;
  for (const Json& entry : json["steps"]) {
    SamplerSteps steps = read_steps(entry, inside("steps", index++), table.steps);
    table.steps.emplace(steps.num_inference_steps, std::move(steps));
  }
  const int history = to_count(json["history"]);
  if (history < 0 || history > kHistory) {
    refuse("history", "it must be 0 to 3, not " + json["history"].dump());
  }
  const auto residual = json["residual"].get<double>();
  if (!std::isfinite(residual) || residual < 0) {
    refuse("residual", "it must be a finite number of at least 0, not " + number_text(residual));
  }
  if (table.steps.empty()) refuse("steps", "it must have one step count or more");
  int most = 0;
  for (const auto& [count, steps] : table.steps) most = std::max(most, steps.extra_evaluations());
  if (json["extra_evaluations"] != most) {
    refuse("extra_evaluations", "it is " + json["extra_evaluations"].dump() + ", but steps have " +
                                    std::to_string(most));
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
  throw Error(ErrorKind::request,
              "scheduler " + quote(name) + " has no table for " +
                  std::to_string(num_inference_steps) + " steps; available: " + ranges(steps),
              "num_inference_steps");
}

SamplerTable parse_sampler_table(std::string_view text, const std::string& where) {
  const std::string not_a_table = where + " is not a sampler table: ";
  const std::string again = ": build the bundle again";
  try {
    if (!is_utf8(text)) throw std::invalid_argument("it is not UTF-8");
    return read_table(parse_json(text));
  } catch (const std::invalid_argument& error) {
    throw Error(ErrorKind::bundle, not_a_table + error.what() + again);
  } catch (const RecordError& error) {
    const std::string field = error.field.empty() ? "document" : error.field;
    throw Error(ErrorKind::bundle, not_a_table + field + ": " + error.what() + again, error.field);
  }
}

}  // namespace tgate
