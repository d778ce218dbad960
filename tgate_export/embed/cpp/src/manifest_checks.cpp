#include "manifest_checks.hpp"

#include <algorithm>
#include <map>
#include <set>

#include "json_reader.hpp"
#include "python_text.hpp"

namespace tgate {
namespace {

[[noreturn]] void refuse(const std::string& fault) { throw RecordError("", "Value error, " + fault); }

std::string folder_of(const std::string& path) {
  const auto slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash);
}

void check_files(const Manifest& manifest) {
  std::set<std::string> used;
  for (const auto& [name, tokenizer] : manifest.tokenizers) used.insert(tokenizer.file);
  for (const auto& [name, sampler] : manifest.samplers) used.insert(sampler.file);
  for (const auto& [name, graph] : manifest.graphs) {
    used.insert(graph.file);
    if (!graph.weights) continue;
    used.insert(*graph.weights);
    if (folder_of(*graph.weights) != folder_of(graph.file)) {
      refuse("graphs: the weights of " + repr(name) + " do not lie beside it");
    }
  }
  for (const std::string& file : used) {
    if (!manifest.files.contains(file)) {
      refuse("file " + repr(file) + " is used but not listed under files");
    }
  }
}

// The last of that name, as a dictionary has it.
const TensorSpec* find(const std::vector<TensorSpec>& tensors, const std::string& name) {
  const auto found = std::find_if(tensors.rbegin(), tensors.rend(),
                                  [&](const TensorSpec& tensor) { return tensor.name == name; });
  return found == tensors.rend() ? nullptr : &*found;
}

// Whether it is [batch, size].
bool is_row_of(const TensorSpec* tensor, std::int64_t size) {
  return tensor != nullptr && tensor->shape.size() == 2 && tensor->shape[1].size == size;
}

void check_prompts(const Manifest& manifest) {
  const Graph* encoder = manifest.graphs.find("text_encoder");
  const std::vector<TensorSpec> inputs = encoder ? encoder->inputs : std::vector<TensorSpec>();
  std::set<std::string> written;
  if (manifest.clip_skips) written.insert("clip_skip");
  for (const auto& [name, tokenizer] : manifest.tokenizers) {
    for (const std::string& tensor : {name, tokenizer.mask.value_or(name)}) {
      written.insert(tensor);
      if (!is_row_of(find(inputs, tensor), tokenizer.max_length)) {
        refuse("tokenizers: graph 'text_encoder' has no input " + repr(tensor) + " of " +
               std::to_string(tokenizer.max_length) + " tokens");
      }
    }
  }
  std::set<std::string> missing;
  for (const TensorSpec& tensor : inputs) {
    if (written.count(tensor.name) == 0) missing.insert(tensor.name);
  }
  if (!missing.empty()) {
    refuse("tokenizers: nothing says what the text encoder's input " + repr(*missing.begin()) + " is");
  }
}

}  // namespace

void check_references(const Manifest& manifest) {
  // What the host computes -> how many numbers of each sample.
  static const std::map<std::string, std::int64_t> kHostWidths{
      {"time_ids", 6}, {"resolution", 2}, {"aspect_ratio", 1}, {"video_ids", 3}};
  check_files(manifest);
  check_prompts(manifest);
  const Graph* full = manifest.graphs.find("full");
  if (full == nullptr) return;  // refused when it is needed, by name
  for (const auto& [name, host] : manifest.conditioning) {
    if (!is_row_of(find(full->inputs, name), kHostWidths.at(host))) {
      refuse("conditioning: graph 'full' has no input " + repr(name) + " for " + host);
    }
  }
  for (const Cache& cache : manifest.cache) {
    if (find(full->outputs, cache.tensor) == nullptr) {
      refuse("cache: graph 'full' has no output " + repr(cache.tensor));
    }
  }
}

}  // namespace tgate
