#include "manifest_parts.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "text.hpp"

namespace tgate {
namespace {

// The one of the values that is called so.
template <class Enum, std::size_t N>
Enum named_one_of(const Value& value, const Enum (&values)[N]) {
  std::vector<std::string> names;
  for (const Enum known : values) names.emplace_back(name_of(known));
  return values[std::find(names.begin(), names.end(), value.one_of(names)) - names.begin()];
}

DType read_dtype(const Value& value) {
  constexpr DType kTypes[] = {DType::float32, DType::float16, DType::int64};
  return named_one_of(value, kTypes);
}

Dim read_dim(const Value& value) {
  if (value.json().is_string()) return {0, value.name()};
  return {value.integer_from(1), {}};
}

std::vector<Dim> read_shape(const Value& value) {
  std::vector<Dim> shape = list_of<Dim>(value, read_dim);
  value.check_items(shape.size(), 0, kMostDims);
  return shape;
}

// Reads what inputs and outputs have; the caller ends the fields.
void read_tensor(Fields& fields, TensorSpec& tensor) {
  tensor.name = fields.required("name").name();
  tensor.dtype = read_dtype(fields.required("dtype"));
  tensor.shape = read_shape(fields.required("shape"));
}

TensorSpec read_output(const Value& value) {
  Fields fields(value);
  TensorSpec tensor;
  read_tensor(fields, tensor);
  fields.end();
  return tensor;
}

std::optional<Of> read_of(Fields& fields) {
  const auto of = fields.optional_not_null("of");
  if (!of) return std::nullopt;
  return of->one_of({"prompt", "negative_prompt"}) == "prompt" ? Of::prompt : Of::negative_prompt;
}

std::optional<std::int64_t> read_chunks(Fields& fields) {
  constexpr std::int64_t kMostChunks = 16;
  const auto chunks = fields.optional_not_null("chunks");
  if (!chunks) return std::nullopt;
  return chunks->integer_from(1, kMostChunks);
}

FromImage read_image(Fields& fields) {
  FromImage origin;
  origin.image = fields.required("image").name();
  const Value range = fields.required("range");
  const auto ends = list_of<double>(range, [](const Value& end) { return end.number(); });
  range.check_items(ends.size(), 2, 2);
  origin.range = {ends[0], ends[1]};
  fields.required("layout").one_of({"BHWC"});
  if (const auto noise = fields.optional_not_null("noise")) origin.noise = noise->name();
  return origin;
}

Formula read_formula(const Value& value) {
  constexpr Formula kFormulas[] = {Formula::time_ids, Formula::resolution, Formula::aspect_ratio,
                                   Formula::video_ids, Formula::frame_guidance_scale};
  return named_one_of(value, kFormulas);
}

std::string read_loop(const Value& value) {
  return value.one_of(
      {"sample", "timestep", "noise_pred", "history", "weights", "noise", "latents"});
}

// An origin is an object with a key that says which kind it is.
Origin read_origin(const Value& value) {
  const auto is = [&](const char* kind) {
    return value.json().is_object() && value.json().contains(kind);
  };
  Fields fields(value);
  const auto name = [&](const char* kind) { return fields.required(kind).name(); };
  Origin origin;
  if (is("parameter")) {
    origin = FromParameter{name("parameter"), read_of(fields)};
  } else if (is("tokens")) {
    origin = FromTokens{name("tokens")};
  } else if (is("mask")) {
    origin = FromMask{name("mask")};
  } else if (is("graph")) {
    origin = FromGraph{name("graph"), name("output"), read_of(fields), read_chunks(fields)};
  } else if (is("image")) {
    origin = read_image(fields);
  } else if (is("formula")) {
    origin = FromFormula{read_formula(fields.required("formula"))};
  } else if (is("cache")) {
    origin = FromCache{name("cache")};
  } else if (is("loop")) {
    origin = FromLoop{read_loop(fields.required("loop"))};
  } else {
    value.refuse("it must be an origin that this reader knows");
  }
  fields.end();
  return origin;
}

InputSpec read_input(const Value& value) {
  Fields fields(value);
  InputSpec tensor;
  read_tensor(fields, tensor);
  tensor.origin = read_origin(fields.required("from"));
  fields.end();
  return tensor;
}

// An integer as far as there is room, else a number.
Scalar read_number(const Value& value) {
  const Json& json = value.json();
  const bool fits = json.is_number_integer() &&
                    !(json.is_number_unsigned() &&
                      json.get<std::uint64_t>() > std::numeric_limits<std::int64_t>::max());
  if (fits) return value.integer();
  return value.number();
}

std::optional<Scalar> read_limit(Fields& fields, const char* name) {
  const auto limit = fields.optional_not_null(name);
  return limit ? std::optional<Scalar>(read_number(*limit)) : std::nullopt;
}

std::optional<Scalar> read_default(Fields& fields) {
  const auto value = fields.optional_not_null("default");
  if (!value) return std::nullopt;
  if (value->json().is_string()) return value->string();
  if (!value->json().is_array()) return read_number(*value);
  const auto sides = list_of<int>(*value, [](const Value& side) {
    return static_cast<int>(side.integer_from(-kMostInt));
  });
  value->check_items(sides.size(), 2, 2);
  return std::array<int, 2>{sides[0], sides[1]};
}

ParameterType read_type(const Value& value) {
  constexpr ParameterType kTypes[] = {ParameterType::integer, ParameterType::number,
                                      ParameterType::choice, ParameterType::pair,
                                      ParameterType::image};
  return named_one_of(value, kTypes);
}

Comparison read_comparison(const Value& value) {
  Fields fields(value);
  Comparison comparison;
  if (const auto modulo = fields.optional_not_null("modulo")) comparison.modulo = modulo->string();
  comparison.op = fields.required("op").one_of({"<", "<=", "==", "!=", ">=", ">"});
  if (const auto name = fields.optional_not_null("parameter")) {
    comparison.parameter = name->string();
  }
  if (const auto constant = fields.optional("constant")) {
    comparison.constant = constant->integer_from(-kMostInt);
  }
  fields.end();
  return comparison;
}

Guard read_guard(const Value& value) {
  Fields fields(value);
  Guard guard;
  guard.phase = fields.required("phase").string();
  guard.all = list_of<Comparison>(fields.required("all"), read_comparison);
  fields.end();
  return guard;
}

void check_method(const Value& value, const Method& method) {
  if (!method.rule.back().all.empty()) {
    value.refuse("the rule's last guard has comparisons, so that a step may have no phase");
  }
  std::vector<std::string> read;
  for (const Guard& guard : method.rule) {
    for (const Comparison& comparison : guard.all) {
      if (comparison.modulo) read.push_back(*comparison.modulo);
      if (comparison.parameter) read.push_back(*comparison.parameter);
    }
  }
  for (const auto& [name, least] : method.at_least) read.insert(read.end(), {name, least});
  for (const std::string& name : read) {
    const auto& known = method.parameters;
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      value.refuse(quote(name) + " is not one of its parameters");
    }
  }
}

}  // namespace

const char* name_of(Formula formula) {
  switch (formula) {
    case Formula::time_ids: return "time_ids";
    case Formula::resolution: return "resolution";
    case Formula::aspect_ratio: return "aspect_ratio";
    case Formula::video_ids: return "video_ids";
    default: return "frame_guidance_scale";
  }
}

std::string read_precision(const Value& value) { return value.one_of({"fp32", "fp16"}); }

Parameter read_parameter(const Value& value) {
  Fields fields(value);
  Parameter parameter;
  const auto text = [&](const char* name) {
    const auto field = fields.optional(name);
    return field ? field->string() : std::string();
  };
  parameter.type = read_type(fields.required("type"));
  parameter.default_value = read_default(fields);
  parameter.min = read_limit(fields, "min");
  parameter.max = read_limit(fields, "max");
  parameter.above = read_limit(fields, "above");
  if (const auto choices = fields.optional("choices")) parameter.choices = choices->strings();
  if (const auto scaled = fields.optional("scaled")) parameter.scaled = scaled->boolean();
  if (const auto per = fields.optional("per")) {
    parameter.per_prompt = per->one_of({"call", "prompt"}) == "prompt";
  }
  parameter.unit = text("unit");
  parameter.because = text("because");
  parameter.help = text("help");
  fields.end();
  return parameter;
}

Graph read_graph(const Value& value) {
  Fields fields(value);
  Graph graph;
  graph.file = fields.required("file").bundle_path();
  const Value weights = fields.required("weights");
  if (!weights.null()) graph.weights = weights.bundle_path();
  graph.precision = read_precision(fields.required("precision"));
  if (const auto attention = fields.optional("float32_attention")) attention->boolean();
  if (const auto layers = fields.optional("float32_layers")) layers->integer_from(0);
  fields.required("parameters").integer();
  graph.inputs = list_of<InputSpec>(fields.required("inputs"), read_input);
  graph.outputs = list_of<TensorSpec>(fields.required("outputs"), read_output);
  if (const auto value_of_tiles = fields.optional_not_null("tiles")) {
    Fields tiles(*value_of_tiles);
    graph.tiles = Tiles{tiles.required("size").integer_from(1),
                        tiles.required("overlap").integer_from(1)};
    tiles.end();
  }
  fields.end();
  return graph;
}

Method read_method(const Value& value) {
  Fields fields(value);
  Method method;
  method.parameters = fields.required("parameters").names();
  if (const auto least = fields.optional("at_least")) {
    method.at_least =
        named<std::string>(*least, [](const Value& name) { return name.name(); });
  }
  const Value rule = fields.required("rule");
  method.rule = list_of<Guard>(rule, read_guard);
  if (method.rule.empty()) rule.refuse("it has no guards");
  fields.end();
  check_method(value, method);
  return method;
}

Cache read_cache(const Value& value) {
  Fields fields(value);
  Cache cache;
  cache.dtype = read_dtype(fields.required("dtype"));
  cache.shape = read_shape(fields.required("shape"));
  cache.kind = fields.required("kind").name();
  if (const auto layers = fields.optional("layers")) cache.layers = layers->strings();
  fields.end();
  return cache;
}

}  // namespace tgate
