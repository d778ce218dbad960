#include "plans.hpp"

#include <algorithm>
#include <set>

#include <tgate/error.hpp>

#include "files.hpp"
#include "json_reader.hpp"
#include "text.hpp"
#include "sha256.hpp"
#include "unicode.hpp"

namespace tgate {
namespace fs = std::filesystem;
namespace {

constexpr std::int64_t kSchemaVersion = 1;
constexpr const char* kRecord = "plans.json";

using Canonical = nlohmann::json;  // sorts keys, as the digest of a key asks

struct ReadPlan {
  Plan plan;
  std::string graph, graph_sha256, weights_sha256;  // weights: empty for none
  std::string digest, key_sha256;
};

std::string again(const fs::path& set) {
  return "remove " + set.string() + ", and build the plans again";
}

bool is_compute_capability(const std::string& text) {  // \d+\.\d
  const auto digit = [](char c) { return c >= '0' && c <= '9'; };
  const auto dot = text.find('.');
  return dot != std::string::npos && dot > 0 && dot + 2 == text.size() && digit(text.back()) &&
         std::all_of(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(dot), digit);
}

std::vector<std::int64_t> read_shape(const Value& value) {
  std::vector<std::int64_t> shape;
  for (const Value& side : value.array()) shape.push_back(side.integer_from(1));
  value.check_items(shape.size(), 1, kMostDims);
  return shape;
}

ShapeRange read_shape_range(const Value& value) {
  Fields fields(value);
  ShapeRange range{read_shape(fields.required("min")), read_shape(fields.required("opt")),
                   read_shape(fields.required("max"))};
  fields.end();
  return range;
}

// Reads `PlanSettings` and writes them, completed with the defaults, to `canonical`.
void read_settings(const Value& value, PlanKey& key, Canonical& canonical) {
  Fields fields(value);
  canonical["optimization_level"] = nullptr;
  if (const auto level = fields.optional("optimization_level"); level && !level->null()) {
    canonical["optimization_level"] = level->integer_from(0, 5);
  }
  canonical["workspace_bytes"] = nullptr;
  if (const auto bytes = fields.optional("workspace_bytes"); bytes && !bytes->null()) {
    if (bytes->bytes() == 0) bytes->refuse("it must be above 0");
    canonical["workspace_bytes"] = bytes->bytes();
  }
  const auto flag = [&](const char* name) {
    const auto field = fields.optional(name);
    const bool on = field && field->boolean();
    canonical[name] = on;
    return on;
  };
  key.hardware_compatible = flag("hardware_compatible");
  key.version_compatible = flag("version_compatible");
  key.weights_stripped = flag("weights_stripped");
  flag("weight_streaming");
  flag("layer_info");
  fields.end();
}

// Reads a key; its digest is the sha256 of its JSON with sorted keys and no spaces.
void read_key(const Value& value, ReadPlan& read) {
  Fields fields(value);
  PlanKey& key = read.plan.key;
  Canonical canonical;
  canonical["graph"] = read.graph = fields.required("graph").name();
  canonical["graph_sha256"] = read.graph_sha256 = fields.required("graph_sha256").sha256();
  const Value weights = fields.required("weights_sha256");
  canonical["weights_sha256"] = nullptr;
  if (!weights.null()) canonical["weights_sha256"] = read.weights_sha256 = weights.sha256();
  canonical["library"] = key.library =
      fields.required("library").one_of({"tensorrt", "tensorrt-rtx"});
  canonical["version"] = key.version = fields.required("version").string();
  for (const Value& item : fields.required("compute_capabilities").array()) {
    key.compute_capabilities.push_back(item.string());
    if (!is_compute_capability(key.compute_capabilities.back())) {
      item.refuse("it must be a compute capability such as 8.9");
    }
  }
  canonical["compute_capabilities"] = key.compute_capabilities;
  canonical["precision"] = fields.required("precision").one_of({"fp32", "fp16"});
  canonical["shapes"] = Canonical::object();
  const Value shapes = fields.required("shapes");
  for (const auto& [name, item] : shapes.object()) {
    check_name(name, item.path() + ".[key]");
    const ShapeRange range = read_shape_range(item);
    canonical["shapes"][name] = {{"min", range.min}, {"opt", range.opt}, {"max", range.max}};
    key.shapes.add(name, range);
  }
  if (key.shapes.empty()) {
    shapes.refuse("there is none");
  }
  read_settings(fields.required("settings"), key, canonical["settings"]);
  canonical["code_sha256"] = fields.required("code_sha256").sha256();
  fields.end();
  read.digest = sha256_of_text(canonical.dump(-1, ' ', true));
}

ReadPlan read_plan(const Value& value) {
  Fields fields(value);
  ReadPlan read;
  const Value file = fields.required("file");
  read.plan.file = file.string();
  const std::string& name = read.plan.file;
  const std::u32string letters = decode_utf8(name);
  if (!std::all_of(letters.begin(), letters.end(), is_printable) || name.empty() ||
      name.find_first_of("/\\") != std::string::npos || name == "." || name == "..") {
    file.refuse(quote(name) + " is not the plain name of a file");
  }
  Fields content(fields.required("content"));
  read.plan.content.sha256 = content.required("sha256").sha256();
  read.plan.content.bytes = content.required("bytes").bytes();
  content.end();
  read_key(fields.required("key"), read);
  read.key_sha256 = fields.required("key_sha256").sha256();
  fields.end();
  return read;
}

Named<ReadPlan> read_record(const fs::path& set) {
  const fs::path record = set / kRecord;
  Json json;
  try {
    if (fs::is_symlink(record)) throw std::invalid_argument("it is a link");
    json = parse_json(read_file(record, kMostRecordBytes));
  } catch (const fs::filesystem_error& error) {
    if (error.code() == std::errc::no_such_file_or_directory) {
      throw Error(ErrorKind::bundle, record.string() + " is missing: " + again(set));
    }
    throw Error(ErrorKind::bundle, "cannot read " + record.string() + " (" + reason_of(error) +
                                       "): " + again(set));
  } catch (const std::invalid_argument& error) {
    throw Error(ErrorKind::bundle,
                "cannot read " + record.string() + " (" + error.what() + "): " + again(set));
  }
  if (json.is_object() && json.contains("schema_version")) {
    const Json& version = json["schema_version"];
    if (version.is_number_integer() && version > kSchemaVersion) {
      throw Error(ErrorKind::bundle,
                  record.string() + " has schema version " + version.dump() +
                      ", this tgate-export reads up to " + std::to_string(kSchemaVersion) +
                      ": update tgate-export, or build the plans again");
    }
  }
  Named<ReadPlan> plans;
  try {
    Fields fields(Value(json, ""));
    if (fields.required("schema_version").json() != kSchemaVersion) {
      throw RecordError("schema_version", "it must be 1");
    }
    for (const auto& [graph, item] : fields.required("plans").object()) {
      check_name(graph, item.path() + ".[key]");
      plans.add(graph, read_plan(item));
    }
    fields.end();
  } catch (const RecordError& error) {
    const std::string field = error.field.empty() ? "record" : error.field;
    throw Error(ErrorKind::bundle,
                record.string() + ": " + field + ": " + error.what() + ": " + again(set),
                error.field);
  }
  if (plans.empty()) {
    throw Error(ErrorKind::bundle, record.string() + " lists no plans: " + again(set));
  }
  for (const auto& [graph, plan] : plans) {
    if (plan.digest != plan.key_sha256 || plan.graph != graph) {
      throw Error(ErrorKind::bundle, record.string() + ": the key of " + quote(graph) +
                                         " was changed after the build: " + again(set));
    }
  }
  return plans;
}

std::vector<std::string> stale_parts(const ReadPlan& plan, const Manifest& manifest) {
  const Graph* graph = manifest.graphs.find(plan.graph);
  if (graph == nullptr) return {"no graph " + quote(plan.graph)};
  std::vector<std::string> stale;
  const std::string weights = graph->weights ? manifest.files.find(*graph->weights)->sha256 : "";
  if (plan.graph_sha256 != manifest.files.find(graph->file)->sha256) {
    stale.emplace_back("graph_sha256");
  }
  if (plan.weights_sha256 != weights) stale.emplace_back("weights_sha256");
  return stale;
}

[[noreturn]] void refuse_extra(const fs::path& path) {
  throw Error(ErrorKind::bundle,
              path.string() + " does not belong to the bundle: move it elsewhere");
}

// A link could lead anywhere.
void check_folder(const fs::path& path) {
  if (fs::symlink_status(path).type() != fs::file_type::directory) refuse_extra(path);
}

void check_plan_files(const fs::path& set, const Named<ReadPlan>& plans) {
  std::set<std::string> known{kRecord};
  for (const auto& [graph, read] : plans) {
    const fs::path file = set / read.plan.file;
    known.insert(read.plan.file);
    if (fs::is_symlink(file) || !fs::is_regular_file(file)) {
      throw Error(ErrorKind::bundle, file.string() + " is missing: " + again(set));
    }
    if (const auto size = fs::file_size(file); size != read.plan.content.bytes) {
      throw Error(ErrorKind::bundle, file.string() + " has " + std::to_string(size) + " bytes, " +
                                         std::to_string(read.plan.content.bytes) +
                                         " were built: " + again(set));
    }
  }
  std::set<std::string> extra;
  for (const auto& entry : fs::directory_iterator(set)) {
    const std::string name = entry.path().filename().string();
    if (known.count(name) == 0 && !is_bystander("plans/" + name)) extra.insert(name);
  }
  if (!extra.empty()) {
    refuse_extra(set / *extra.begin());
  }
}

void check_plan_hashes(const fs::path& set, const Named<ReadPlan>& plans) {
  std::vector<fs::path> files;
  for (const auto& [graph, read] : plans) files.push_back(set / read.plan.file);
  const std::vector<std::string> hashes = sha256_of_files(files);
  std::size_t index = 0;
  for (const auto& [graph, read] : plans) {
    if (hashes[index++] != read.plan.content.sha256) {
      throw Error(ErrorKind::bundle, (set / read.plan.file).string() +
                                         " was changed after the build (its sha256 differs): " +
                                         again(set));
    }
  }
}

}  // namespace

bool ShapeRange::contains(const std::vector<std::int64_t>& shape) const {
  if (shape.size() != min.size() || shape.size() != max.size()) return false;
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] < min[i] || shape[i] > max[i]) return false;
  }
  return true;
}

std::string str(const ShapeRange& range) {
  const auto sides = [](const std::vector<std::int64_t>& shape) {
    std::vector<std::string> parts;
    for (const std::int64_t side : shape) parts.push_back(std::to_string(side));
    return join(parts, "x");
  };
  if (range.fixed()) return sides(range.opt);
  return join({sides(range.min), sides(range.opt), sides(range.max)}, ":");
}

std::vector<PlanSet> check_plan_sets(const Bundle& bundle, bool check_hashes) {
  const fs::path folder = bundle.path / "plans";
  std::vector<PlanSet> sets;
  if (!fs::exists(fs::symlink_status(folder))) return sets;
  check_folder(folder);
  std::set<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(folder)) paths.insert(entry.path());
  for (const fs::path& path : paths) {
    if (is_bystander("plans" / path.filename())) continue;
    check_folder(path);
    const std::string name = path.filename().string();
    if (name[0] == '.' && name.find(".building-") != std::string::npos) continue;  // or was killed
    if (name[0] == '.') refuse_extra(path);
    const Named<ReadPlan> plans = read_record(path);
    check_plan_files(path, plans);
    PlanSet set{path, {}};
    for (const auto& [graph, read] : plans) {
      if (const auto stale = stale_parts(read, bundle.manifest); !stale.empty()) {
        throw Error(ErrorKind::bundle, (path / read.plan.file).string() +
                                           " was compiled from other graphs than this bundle's (" +
                                           join(stale) + "): " + again(path));
      }
      set.plans.add(graph, read.plan);
    }
    if (check_hashes) check_plan_hashes(path, plans);
    sets.push_back(std::move(set));
  }
  return sets;
}

}  // namespace tgate
