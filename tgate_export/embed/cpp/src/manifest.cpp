#include <tgate/manifest.hpp>

#include <stdexcept>

#include <tgate/error.hpp>

#include "json_reader.hpp"
#include "manifest_checks.hpp"
#include "python_text.hpp"

namespace tgate {
namespace {

constexpr std::int64_t kSchemaVersion = 1;

DType dtype_of(const Value& value) {
  const std::string name = value.one_of({"float32", "float16", "int64"});
  return name == "int64" ? DType::int64 : name == "float16" ? DType::float16 : DType::float32;
}

Dim read_dim(const Value& value) {
  if (value.json().is_string() && is_plain_name(value.string())) return {0, value.string()};
  // A dimension is a number or a name; what is neither is told of the number.
  return {Value(value.json(), value.path() + ".constrained-int").integer_from(1), {}};
}

template <class T, class Read>
std::vector<T> list_of(const Value& value, Read read) {
  std::vector<T> items;
  for (const Value& item : value.array()) items.push_back(read(item));
  return items;
}

template <class T, class Read>
Named<T> named(const Value& value, Read read) {
  Named<T> items;
  for (const auto& [name, item] : value.object()) {
    check_name(name, item.path() + ".[key]");
    items.add(name, read(item));
  }
  return items;
}

TensorSpec read_tensor(const Value& value) {
  Fields fields(value);
  TensorSpec tensor;
  tensor.name = fields.required("name").name();
  tensor.dtype = dtype_of(fields.required("dtype"));
  const Value shape = fields.required("shape");
  tensor.shape = list_of<Dim>(shape, read_dim);
  shape.check_items(tensor.shape.size(), kMostDims);
  fields.end();
  return tensor;
}

std::string read_precision(const Value& value) { return value.one_of({"fp32", "fp16"}); }

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
  graph.inputs = list_of<TensorSpec>(fields.required("inputs"), read_tensor);
  graph.outputs = list_of<TensorSpec>(fields.required("outputs"), read_tensor);
  fields.end();
  return graph;
}

Cache read_cache(const Value& value) {
  Fields fields(value);
  Cache cache;
  cache.tensor = fields.required("tensor").name();
  fields.required("kind").one_of({"cross_cache", "self_passes", "self_cache"});
  const Value passes = fields.required("passes");
  if (!passes.null()) cache.passes = passes.integer_from(1);
  const Value downsample = fields.required("downsample");
  if (!downsample.null()) cache.downsample = downsample.integer_from(1);
  cache.width = fields.required("width").integer_from(1);
  const auto layers = fields.required("layers").array();
  for (const Value& layer : layers) layer.string();
  cache.layers = static_cast<std::int64_t>(layers.size());
  fields.end();
  return cache;
}

Range read_range(const Value& value) {
  Fields fields(value);
  Range range{};
  range.min = fields.required("min").integer_from(1);
  range.opt = fields.required("opt").integer_from(1);
  range.max = fields.required("max").integer_from(1);
  fields.end();
  if (range.min > range.opt || range.opt > range.max) {
    value.refuse("Value error, " + str(range) + " is not in the order MIN <= OPT <= MAX");
  }
  return range;
}

Defaults read_defaults(const Value& value) {
  Fields fields(value);
  Defaults defaults{};
  const auto with_default = [&](const char* name, std::int64_t least, std::int64_t otherwise) {
    const auto field = fields.optional(name);
    return field ? field->integer_from(least) : otherwise;
  };
  defaults.num_inference_steps = fields.required("num_inference_steps").integer_from(1);
  defaults.gate_step = fields.required("gate_step").integer_from(1);
  defaults.guidance_scale = fields.required("guidance_scale").number();
  defaults.scheduler = fields.required("scheduler").string();
  defaults.sp_interval = with_default("sp_interval", 1, 1);
  defaults.fi_interval = with_default("fi_interval", 1, 1);
  defaults.warm_up = with_default("warm_up", 0, 0);
  fields.end();
  return defaults;
}

SamplerSpec read_sampler(const Value& value) {
  Fields fields(value);
  SamplerSpec sampler;
  sampler.file = fields.required("file").bundle_path();
  fields.required("scheduler_class").string();
  fields.required("extra_evaluations").integer_from(0);
  sampler.max_steps = fields.required("max_steps").integer_from(1);
  fields.end();
  return sampler;
}

TokenizerSpec read_tokenizer(const Value& value) {
  Fields fields(value);
  TokenizerSpec tokenizer;
  tokenizer.file = fields.required("file").bundle_path();
  tokenizer.max_length = fields.required("max_length").integer_from(1, 1 << 16);
  tokenizer.pad_token_id = fields.required("pad_token_id").integer_from(0);
  tokenizer.eos_token_id = fields.required("eos_token_id").integer_from(0);
  const Value mask = fields.required("mask");
  if (!mask.null()) tokenizer.mask = mask.name();
  fields.end();
  return tokenizer;
}

Named<FileRecord> read_files(const Value& value) {
  Named<FileRecord> files;
  for (const auto& [path, item] : value.object()) {
    if (const std::string fault = inside_bundle(path); !fault.empty()) {
      throw RecordError(item.path() + ".[key]", "Value error, " + fault);
    }
    Fields fields(item);
    FileRecord record;
    record.sha256 = fields.required("sha256").sha256();
    record.bytes = fields.required("bytes").bytes();
    fields.end();
    files.add(path, record);
  }
  return files;
}

// Fields in the order of tgate_export/bundle/manifest.py: of several faults, the first is named.
Manifest read_manifest(const Json& json) {
  Fields fields(Value(json, ""));
  Manifest manifest;
  if (fields.required("schema_version").json() != kSchemaVersion) {
    throw RecordError("schema_version", "Input should be " + std::to_string(kSchemaVersion));
  }
  manifest.name = fields.required("name").string();
  manifest.family = fields.required("family").string();
  {
    Fields source(fields.required("source"));
    manifest.source_kind =
        source.required("kind").one_of({"packaged", "local", "hub", "random"});
    manifest.source_model = source.required("model").string();
    if (const Value revision = source.required("revision"); !revision.null()) revision.string();
    source.required("fingerprint").string();
    source.end();
  }
  manifest.precision = read_precision(fields.required("precision"));
  fields.required("build_key").string();
  fields.required("prediction_type").one_of({"epsilon", "v_prediction", "sample"});
  manifest.defaults = read_defaults(fields.required("defaults"));
  manifest.batch = read_range(fields.required("batch"));
  {
    Fields size(fields.required("size"));
    manifest.height = read_range(size.required("height"));
    manifest.width = read_range(size.required("width"));
    manifest.size_multiple = size.required("multiple").integer_from(1);
    size.end();
  }
  {
    Fields latents(fields.required("latents"));
    manifest.latent_channels = latents.required("channels").integer_from(1);
    manifest.latent_downscale = latents.required("downscale").integer_from(1);
    const auto frames = latents.optional("frames");
    if (frames && !frames->null()) manifest.frames = frames->integer_from(1);
    latents.end();
  }
  manifest.tokenizers = named<TokenizerSpec>(fields.required("tokenizers"), read_tokenizer);
  const auto clip_skips = fields.optional("clip_skips");
  manifest.clip_skips = clip_skips ? clip_skips->integer_from(0, 1000) : 0;
  manifest.guidance = fields.required("guidance").one_of({"classifier-free", "embedded", "none"});
  manifest.absent_negative_prompt =
      fields.required("absent_negative_prompt").one_of({"empty", "zeros"});
  manifest.conditioning = named<std::string>(fields.required("conditioning"), [](const Value& v) {
    return v.one_of({"time_ids", "resolution", "aspect_ratio", "video_ids"});
  });
  manifest.graphs = named<Graph>(fields.required("graphs"), read_graph);
  manifest.cache = list_of<Cache>(fields.required("cache"), read_cache);
  manifest.samplers = named<SamplerSpec>(fields.required("samplers"), read_sampler);
  for (const auto& [name, version] : fields.required("versions").object()) version.string();
  manifest.files = read_files(fields.required("files"));
  fields.end();
  check_references(manifest);
  return manifest;
}

}  // namespace

const char* name_of(DType dtype) {
  return dtype == DType::int64 ? "int64" : dtype == DType::float16 ? "float16" : "float32";
}

std::size_t bytes_of(DType dtype) {
  return dtype == DType::int64 ? 8 : dtype == DType::float16 ? 2 : 4;
}

std::string str(const Range& range) {
  if (range.min == range.max) return std::to_string(range.opt);
  return std::to_string(range.min) + ":" + std::to_string(range.opt) + ":" +
         std::to_string(range.max);
}

const Graph& Manifest::graph(std::string_view graph_name) const {
  if (const Graph* found = graphs.find(graph_name)) return *found;
  throw Error(ErrorKind::bundle,
              "bundle " + repr(name) + " has no graph " + repr(graph_name));
}

Manifest parse_manifest(std::string_view text, const std::string& where) {
  Json json;
  try {
    json = parse_json(text);
  } catch (const std::invalid_argument& error) {
    throw Error(ErrorKind::bundle,
                where + " is not valid JSON (" + error.what() + "): build the bundle again");
  }
  const std::string not_a_manifest = where + " is not a bundle manifest: ";
  if (!json.is_object() || !json.contains("schema_version")) {
    throw Error(ErrorKind::bundle, not_a_manifest + "it has no schema_version");
  }
  const Json& version = json["schema_version"];
  if (!version.is_number_integer()) {
    throw Error(ErrorKind::bundle, not_a_manifest + "schema_version is " + python_repr(version));
  }
  if (version > kSchemaVersion) {
    throw Error(ErrorKind::bundle, where + " has schema version " + version.dump() +
                                       ", this tgate-export reads up to " +
                                       std::to_string(kSchemaVersion) +
                                       ": update tgate-export, or build the bundle again");
  }
  try {
    return read_manifest(json);
  } catch (const RecordError& error) {
    const std::string field = error.where.empty() ? "manifest" : error.where;
    throw Error(ErrorKind::bundle,
                where + ": " + field + ": " + error.what() + ": build the bundle again");
  }
}

}  // namespace tgate
