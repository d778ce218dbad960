// Answers requests of the tests: a JSON object on each line of stdin, another on stdout.
#include <algorithm>
#include <array>
#include <exception>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include <nlohmann/json.hpp>

#include <tgate/pipeline.hpp>

#include "binding_plan.hpp"
#include "bundle_files.hpp"
#include "call.hpp"
#include "cpus.hpp"
#include "files.hpp"
#include "half.hpp"
#include "noise.hpp"
#include "prompt_chunks.hpp"
#include "prompt_syntax.hpp"
#include "sampler_table.hpp"
#include "step_plan.hpp"
#include "text.hpp"
#include "tokenizer.hpp"
#include "unicode.hpp"

namespace {

using Json = nlohmann::json;

tgate::Tensor tensor_of(const Json& json) {
  return {json.at("shape").get<std::vector<std::int64_t>>(),
          json.at("data").get<std::vector<float>>()};
}

Json json_of(const tgate::Tensor& tensor) {
  return {{"shape", tensor.shape}, {"data", tensor.data}};
}

tgate::Prompts prompts_of(const Json& json) {
  if (json.contains("texts")) return json["texts"].get<tgate::Texts>();
  if (json.contains("token_ids")) return json["token_ids"].get<tgate::TokenIds>();
  tgate::Embeds embeds;
  for (const auto& [name, value] : json.at("embeds").items()) embeds[name] = tensor_of(value);
  return embeds;
}

template <class T>
void set(const Json& json, const char* name, std::optional<T>& member) {
  if (json.contains(name)) member = json[name].get<T>();
}

tgate::Scalar scalar_of(const Json& json) {
  if (json.is_string()) return json.get<std::string>();
  if (json.is_array()) return json.get<std::array<int, 2>>();
  if (json.is_number_integer()) return json.get<std::int64_t>();
  return json.get<double>();
}

// A list is of one value each, [[height, width]] of a pair for all prompts.
tgate::ParameterValue value_of(const Json& json) {
  if (!json.is_array()) return scalar_of(json);
  std::vector<tgate::Scalar> values;
  for (const Json& value : json) values.push_back(scalar_of(value));
  return values;
}

tgate::Request request_of(const Json& json) {
  tgate::Request request;
  request.prompt = prompts_of(json.at("prompt"));
  if (json.contains("negative_prompt")) {
    request.negative_prompt = prompts_of(json["negative_prompt"]);
  }
  set(json, "num_inference_steps", request.num_inference_steps);
  set(json, "gate_step", request.gate_step);
  set(json, "sp_interval", request.sp_interval);
  set(json, "fi_interval", request.fi_interval);
  set(json, "warm_up", request.warm_up);
  set(json, "scheduler", request.scheduler);
  set(json, "seed", request.seed);
  set(json, "height", request.height);
  set(json, "width", request.width);
  set(json, "original_size", request.original_size);
  set(json, "crops_coords_top_left", request.crops_coords_top_left);
  set(json, "target_size", request.target_size);
  if (json.contains("guidance_scale")) json["guidance_scale"].get_to(request.guidance_scale);
  set(json, "guidance_rescale", request.guidance_rescale);
  set(json, "clip_skip", request.clip_skip);
  set(json, "prompt_syntax", request.prompt_syntax);
  if (json.contains("parameters")) {
    for (const auto& [name, value] : json["parameters"].items()) {
      request.parameters[name] = value_of(value);
    }
  }
  if (json.contains("images")) {
    for (const auto& [name, value] : json["images"].items()) {
      request.images[name] = tensor_of(value);
    }
  }
  request.num_images_per_prompt = json.value("num_images_per_prompt", 1);
  if (json.contains("latents")) request.latents = tensor_of(json["latents"]);
  return request;
}

Json settings_json(const tgate::Settings& settings) {
  Json parameters = Json::object();  // of the first image
  for (const auto& [name, values] : settings.parameters) {
    Json& value = parameters[name];
    if (values.at(0)) std::visit([&](const auto& scalar) { value = scalar; }, *values[0]);
  }
  return parameters;
}

// Pipelines that were opened, by what they were opened with.
std::map<std::string, std::unique_ptr<tgate::Pipeline>> pipelines;

Json run(const Json& json) {
  const std::string backend = json.value("backend", "onnxruntime");
  const std::uint64_t join_above =
      json.value("join_weights_above", tgate::Options().join_weights_above);
  // By default one: a second would only wait for the other processes of the tests.
  const int threads = json.value("threads", 1);
  auto& pipeline = pipelines[backend + " " + std::to_string(join_above) + " " +
                             std::to_string(threads) + " " + json.at("bundle").get<std::string>()];
  if (!pipeline) {
    tgate::Options options;
    options.backend = backend;
    options.check_hashes = json.value("check_hashes", true);
    options.join_weights_above = join_above;
    options.threads = threads;
    pipeline = std::make_unique<tgate::Pipeline>(json["bundle"].get<std::string>(), options);
  }
  if (json.contains("chdir")) std::filesystem::current_path(json["chdir"].get<std::string>());
  tgate::Request request = request_of(json.at("request"));
  Json steps = Json::array();
  Json latents = Json::array();  // after every step: of the last one, a part of the call each
  const int stop_after = json.value("stop_after", -1);
  request.on_step_end = [&](const tgate::StepInfo& info) {
    steps.push_back({{"phase", info.phase}, {"timestep", info.timestep}});
    if (info.step + 1 == info.evaluations) latents.push_back(json_of(info.latents()));
    return info.step != stop_after;
  };
  const tgate::Result result = (*pipeline)(request);
  Json images = Json::array();
  for (const tgate::Image& image : result.images) images.push_back(image.rgb);
  return {{"images", images},
          {"latents", latents},
          {"steps", steps},
          {"parameters", settings_json(result.settings)},
          {"warnings", result.warnings},
          {"outside_engines", result.timings.outside_engines()},
          {"total", result.timings.total}};
}

Json encode(const Json& json) {
  const std::string file = json.at("file").get<std::string>();
  const tgate::Tokenizer tokenizer(tgate::read_file(file), file);
  Json rows = Json::array();
  Json decoded = Json::array();
  for (const Json& text : json.at("texts")) {
    const auto ids = tokenizer.encode(text.get_ref<const std::string&>());
    rows.push_back(ids);
    decoded.push_back(tokenizer.decode(ids));
  }
  return {{"ids", rows}, {"decoded", decoded}};
}

Json pieces(const Json& json) {
  Json found = Json::array();
  for (const tgate::Piece& piece :
       tgate::read_a1111(json.at("text").get<std::string>(), json.value("field", "prompt"))) {
    found.push_back({piece.text ? Json(*piece.text) : Json(), piece.weight});
  }
  return {{"pieces", found}};
}

Json chunks(const Json& json) {
  const std::string file = json.at("file").get<std::string>();
  const tgate::Tokenizer tokenizer(tgate::read_file(file), file);
  const auto pieces = tgate::read_a1111(json.at("text").get<std::string>(), "prompt");
  const auto found = tgate::split_chunks(tokenizer, pieces, json.at("room"), json.at("most"));
  Json all = Json::array();
  for (const tgate::Chunk& chunk : found.chunks) all.push_back({chunk.ids, chunk.weights});
  return {{"chunks", all}, {"left_out", found.left_out}};
}

// The phases of a bundle's method; its parameters' values are those of a request.
Json phases(const Json& json) {
  const tgate::Manifest manifest =
      tgate::parse_manifest(json.at("text").get_ref<const std::string&>(), "manifest.json");
  tgate::Request request = request_of(json.at("request"));
  const tgate::Call call = tgate::make_call(manifest, request);
  Json names = Json::array();
  for (const tgate::Guard* guard :
       tgate::plan_steps(manifest.method(), call.method, json.at("step_of_evaluation"))) {
    names.push_back(guard->phase);
  }
  return {{"phases", names}};
}

Json slots_json(const tgate::Bound& bound) {
  Json slots = Json::object();
  for (const auto& [tensor, slot] : bound) slots[tensor] = slot.buffer;
  return slots;
}

Json answer(const Json& json) {
  const std::string op = json.at("op").get<std::string>();
  if (op == "run") return run(json);
  if (op == "encode") return encode(json);
  if (op == "pieces") return pieces(json);
  if (op == "chunks") return chunks(json);
  if (op == "phases") return phases(json);
  if (op == "quota") {
    const std::string folder = json.at("folder");
    return {{"threads", tgate::cpu_quota(folder + "/cgroup", folder, 64)}};
  }
  if (op == "open") {
    const tgate::Bundle bundle = tgate::open_bundle(json.at("bundle").get<std::string>(),
                                                    json.value("check_hashes", true));
    return {{"name", bundle.manifest.name}};
  }
  if (op == "graph") {  // what an engine would be given
    const tgate::Bundle bundle = tgate::open_bundle(json.at("bundle").get<std::string>(), false);
    return {{"bytes", tgate::read_graph(bundle, json.at("graph"), true).size()}};
  }
  if (op == "manifest") {
    tgate::parse_manifest(json.at("text").get_ref<const std::string&>(), json.at("where"));
    return {{"ok", true}};
  }
  if (op == "values") {  // of the parameters of a call, completed
    const tgate::Manifest manifest =
        tgate::parse_manifest(json.at("text").get_ref<const std::string&>(), "manifest.json");
    const tgate::Call call = tgate::make_call(manifest, request_of(json.at("request")));
    return {{"parameters", settings_json(call.settings)}};
  }
  if (op == "plan") {  // what a call would run, without engines
    const tgate::Manifest manifest =
        tgate::parse_manifest(json.at("text").get_ref<const std::string&>(), "manifest.json");
    const tgate::Call call = tgate::make_call(manifest, request_of(json.at("request")));
    std::vector<std::string> graphs;
    for (const auto& [name, graph] : manifest.graphs) {
      if (manifest.is_phase(name)) graphs.push_back(name);
    }
    const tgate::BindingPlan plan = tgate::plan_run(
        manifest, {std::min<std::int64_t>(call.images, manifest.batch.max), call.settings.height,
                   call.settings.width, graphs, false});
    Json launches = Json::array();
    for (const tgate::Launch* launch : plan.launches()) {
      launches.push_back({{"graph", launch->graph},
                          {"inputs", slots_json(launch->inputs)},
                          {"outputs", slots_json(launch->outputs)}});
    }
    Json buffers = Json::object();
    for (const auto& [name, spec] : plan.buffers) {
      buffers[name] = {{"dtype", tgate::name_of(spec.dtype)}, {"shape", spec.shape}};
    }
    return {{"images", call.images},
            {"parameters", settings_json(call.settings)},
            {"launches", launches},
            {"buffers", buffers}};
  }
  if (op == "png") {
    const tgate::Image image{json.at("width"), json.at("height"),
                             std::vector<std::uint8_t>(json.at("bytes").get<std::size_t>())};
    tgate::write_png(image, json.at("file").get<std::string>());
    return {{"ok", true}};
  }
  if (op == "table") {
    const std::string file = json.at("file").get<std::string>();
    const auto table = tgate::parse_sampler_table(tgate::read_file(file), file);
    if (!json.contains("steps")) return {{"counts", table.steps.size()}};
    const auto& steps = table.for_steps(json["steps"]);
    return {{"timesteps", steps.timesteps},
            {"weights", steps.weights},
            {"step_of_evaluation", steps.step_of_evaluation}};
  }
  if (op == "noise") {
    return {{"values", tgate::standard_normal(json.at("count"), json.at("seed"), json.at("image"),
                                              json.at("draw"))}};
  }
  if (op == "half") {
    Json values = Json::array(), floats = Json::array();
    for (const Json& value : json.at("values")) {
      values.push_back(tgate::to_half(value));
      floats.push_back(tgate::from_half(values.back()));
    }
    return {{"values", values}, {"floats", floats}};
  }
  if (op == "quote") return {{"text", tgate::quote(json.at("text").get<std::string>())}};
  throw std::invalid_argument("no op " + op);
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    Json reply;
    try {
      reply = answer(Json::parse(line));
    } catch (const tgate::Error& error) {
      reply = {{"error", error.what()},
               {"field", error.field()},
               {"kind", tgate::name_of(error.kind())}};
    } catch (const std::exception& error) {
      reply = {{"crash", error.what()}};
    }
    std::cout << reply.dump(-1, ' ', true) << std::endl;
  }
}
