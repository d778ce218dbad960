#include <tgate/manifest.hpp>

#include <algorithm>
#include <set>
#include <stdexcept>

#include <tgate/error.hpp>

#include "json_reader.hpp"
#include "manifest_checks.hpp"
#include "manifest_parts.hpp"
#include "text.hpp"

namespace tgate {
namespace {

// A newer minor version adds fields, which older readers ignore; what a reader cannot ignore is in
// `requires` as well.
constexpr std::int64_t kSchemaVersion = 2;
constexpr std::int64_t kSchemaMinor = 1;
// Abilities beyond those of 2.0 that this reader has.
const std::set<std::string> kAbilities{"prompt-chunks", "prompt-syntax", "tiles"};

Range read_range(const Value& value) {
  Fields fields(value);
  Range range{};
  range.min = fields.required("min").integer_from(1);
  range.opt = fields.required("opt").integer_from(1);
  range.max = fields.required("max").integer_from(1);
  fields.end();
  if (range.min > range.opt || range.opt > range.max) {
    value.refuse(str(range) + " is not in the order MIN <= OPT <= MAX");
  }
  return range;
}

Dimension read_dimension(const Value& value) {
  Fields fields(value);
  Dimension dimension{};
  dimension.downsample = fields.required("downsample").integer_from(1);
  const auto times = fields.optional("times");
  dimension.times = times ? times->integer_from(1) : 1;
  fields.end();
  return dimension;
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
  TokenizerSpec tokenizer{};
  tokenizer.file = fields.required("file").bundle_path();
  tokenizer.max_length = fields.required("max_length").integer_from(1, 1 << 16);
  tokenizer.pad_token_id = fields.required("pad_token_id").integer_from(0);
  tokenizer.eos_token_id = fields.required("eos_token_id").integer_from(0);
  if (const auto columns = fields.optional_not_null("columns")) {
    const std::vector<Value> ends = columns->array();
    columns->check_items(ends.size(), 0, 2);
    tokenizer.columns.emplace();
    for (std::size_t end = 0; end < 2; ++end) {
      const std::string path = columns->path() + "." + std::to_string(end);
      if (end == ends.size()) throw RecordError(path, "it is missing");
      (*tokenizer.columns)[end] = ends[end].integer_from(end == 0 ? 0 : 1);
    }
  }
  fields.end();
  return tokenizer;
}

Named<FileRecord> read_files(const Value& value) {
  Named<FileRecord> files;
  for (const auto& [path, item] : value.object()) {
    if (const std::string fault = inside_bundle(path); !fault.empty()) {
      throw RecordError(item.path() + ".[key]", fault);
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
Manifest read_manifest(const Json& json, Unknown unknown) {
  Fields fields(Value(json, "", unknown));
  Manifest manifest;
  const Value version = fields.required("schema_version");
  if (version.integer() != kSchemaVersion) {
    version.refuse("it must be " + std::to_string(kSchemaVersion));
  }
  if (const auto minor = fields.optional("schema_minor")) minor->integer_from(0);
  if (const auto required = fields.optional("requires")) required->names();
  manifest.name = fields.required("name").string();
  manifest.family = fields.required("family").string();
  {
    Fields source(fields.required("source"));
    manifest.source_kind =
        source.required("kind").one_of({"packaged", "local", "hub", "random"});
    manifest.source_model = source.required("model").string();
    if (const Value revision = source.required("revision"); !revision.null()) revision.string();
    source.required("fingerprint").string();
    if (const auto config = source.optional_not_null("config")) {
      manifest.source_config = config->string();
    }
    if (const auto vae = source.optional_not_null("vae")) manifest.source_vae = vae->string();
    if (const auto loras = source.optional("loras")) {
      for (const Value& entry : loras->array()) {
        Fields lora(entry);
        AppliedLora& applied = manifest.source_loras.emplace_back();
        applied.file = lora.required("file").string();
        lora.required("sha256").sha256();
        applied.scale = lora.required("scale").number();
        lora.end();
      }
    }
    if (const auto embeddings = source.optional("embeddings")) {
      for (const Value& entry : embeddings->array()) {
        Fields embedding(entry);
        AddedEmbedding& added = manifest.source_embeddings.emplace_back();
        added.file = embedding.required("file").string();
        embedding.required("sha256").sha256();
        added.token = embedding.required("token").string();
        embedding.end();
      }
    }
    source.end();
  }
  manifest.precision = read_precision(fields.required("precision"));
  fields.required("build_key").string();
  fields.required("prediction_type").one_of({"epsilon", "v_prediction", "sample"});
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
    if (const auto frames = latents.optional_not_null("frames")) {
      manifest.frames = frames->integer_from(1);
    }
    latents.end();
  }
  manifest.parameters = named<Parameter>(fields.required("parameters"), read_parameter);
  manifest.tokenizers = named<TokenizerSpec>(fields.required("tokenizers"), read_tokenizer);
  manifest.guidance = fields.required("guidance").one_of({"classifier-free", "embedded", "none"});
  manifest.absent_negative_prompt =
      fields.required("absent_negative_prompt").one_of({"empty", "zeros"});
  manifest.graphs = named<Graph>(fields.required("graphs"), read_graph);
  const Value methods = fields.required("methods");
  manifest.methods = named<Method>(methods, read_method);
  if (manifest.methods.empty()) methods.refuse("there is none");
  manifest.caches = named<Cache>(fields.required("caches"), read_cache);
  if (const auto dimensions = fields.optional("dimensions")) {
    manifest.dimensions = named<Dimension>(*dimensions, read_dimension);
  }
  manifest.samplers = named<SamplerSpec>(fields.required("samplers"), read_sampler);
  for (const auto& [name, number] : fields.required("versions").object()) number.string();
  manifest.files = read_files(fields.required("files"));
  fields.end();
  check_references(manifest);
  return manifest;
}

// The first ability that a manifest requires and this reader lacks, or "".
std::string lacking(const Json& json) {
  const auto required = json.find("requires");
  if (required == json.end() || !required->is_array()) return {};
  const bool texts = std::all_of(required->begin(), required->end(),
                                 [](const Json& name) { return name.is_string(); });
  for (const Json& name : *required) {
    if (texts && kAbilities.count(name.get<std::string>()) == 0) return name.get<std::string>();
  }
  return {};
}

template <class Predicate>
bool any_input(const Manifest& manifest, Predicate predicate) {
  return std::any_of(manifest.graphs.begin(), manifest.graphs.end(), [&](const auto& entry) {
    const std::vector<InputSpec>& inputs = entry.second.inputs;
    return std::any_of(inputs.begin(), inputs.end(), predicate);
  });
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
  throw Error(ErrorKind::bundle, "bundle " + quote(name) + " has no graph " + quote(graph_name) +
                                     ": build it again with `tgate-export build`");
}

bool Manifest::is_phase(std::string_view graph_name) const {
  return std::any_of(methods.begin(), methods.end(), [&](const auto& entry) {
    const std::vector<Guard>& rule = entry.second.rule;
    return std::any_of(rule.begin(), rule.end(),
                       [&](const Guard& guard) { return guard.phase == graph_name; });
  });
}

bool Manifest::takes_negative() const {
  return any_input(*this, [](const InputSpec& tensor) {
    const auto* origin = std::get_if<FromGraph>(&tensor.origin);
    return origin != nullptr && origin->of == Of::negative_prompt;
  });
}

bool Manifest::takes_prompt() const {
  return any_input(*this, [](const InputSpec& tensor) {
    return std::holds_alternative<FromTokens>(tensor.origin);
  });
}

std::map<std::string, std::int64_t> Manifest::chunks() const {
  std::map<std::string, std::int64_t> found;
  for (const auto& [graph_name, graph] : graphs) {
    if (!is_phase(graph_name)) continue;
    for (const InputSpec& tensor : graph.inputs) {
      const auto* origin = std::get_if<FromGraph>(&tensor.origin);
      if (origin != nullptr && origin->chunks) found[origin->output] = *origin->chunks;
    }
  }
  return found;
}

std::int64_t Manifest::prompt_chunks() const {
  std::int64_t most = 1;
  for (const auto& [output, number] : chunks()) most = std::max(most, number);
  return most;
}

Manifest parse_manifest(std::string_view text, const std::string& where) {
  const std::string again = ": build the bundle again";
  Json json;
  try {
    json = parse_json(text);
  } catch (const std::invalid_argument& error) {
    throw Error(ErrorKind::bundle, where + " is not valid JSON (" + error.what() + ")" + again);
  }
  const std::string not_a_manifest = where + " is not a bundle manifest: ";
  if (!json.is_object() || !json.contains("schema_version")) {
    throw Error(ErrorKind::bundle, not_a_manifest + "it has no schema_version", "schema_version");
  }
  for (const char* name : {"schema_version", "schema_minor"}) {
    if (json.contains(name) && !json[name].is_number_integer()) {
      throw Error(ErrorKind::bundle, not_a_manifest + name + " is no whole number", name);
    }
  }
  const Json& version = json["schema_version"];
  const std::string found = where + " has schema version " + version.dump() +
                            ", this tgate-export reads " + std::to_string(kSchemaVersion);
  if (version > kSchemaVersion) {
    throw Error(ErrorKind::bundle, found + ": update tgate-export, or build the bundle again",
                "schema_version");
  }
  if (version > 0 && version < kSchemaVersion) {
    throw Error(ErrorKind::bundle, found + again, "schema_version");
  }
  if (const std::string ability = lacking(json); !ability.empty()) {
    throw Error(ErrorKind::bundle,
                where + " needs " + quote(ability) +
                    ", which this tgate-export cannot do: update tgate-export",
                "requires");
  }
  const bool newer = json.contains("schema_minor") && json["schema_minor"] > kSchemaMinor;
  try {
    return read_manifest(json, newer ? Unknown::ignored : Unknown::refused);
  } catch (const RecordError& error) {
    const std::string field = error.field.empty() ? "manifest" : error.field;
    throw Error(ErrorKind::bundle, where + ": " + field + ": " + error.what() + again,
                error.field);
  }
}

}  // namespace tgate
