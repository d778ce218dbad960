#include "prompts.hpp"

#include <algorithm>
#include <cmath>

#include <tgate/error.hpp>

#include "binding_plan.hpp"
#include "counts.hpp"
#include "half.hpp"
#include "prompt_chunks.hpp"
#include "prompt_syntax.hpp"
#include "text.hpp"
#include "unicode.hpp"

namespace tgate {
namespace {

[[noreturn]] void refuse(const std::string& argument, const std::string& message) {
  throw Error(ErrorKind::request, message, argument);
}

bool all_text(const Texts& texts) {
  return std::all_of(texts.begin(), texts.end(), [](const std::string& t) { return is_utf8(t); });
}

// Whether two collections of named entries have the same names.
template <class Map>
bool same_names(const Map& map, const std::vector<std::string>& names) {
  return map.size() == names.size() &&
         std::all_of(names.begin(), names.end(), [&](const auto& n) { return map.count(n) > 0; });
}

template <class Map>
std::string listed(const Map& map) {
  std::vector<std::string> names;
  for (const auto& [name, value] : map) names.push_back(name);
  return join(names);
}

template <class Map, class Size>
void check_counts(const std::string& argument, const Map& map, Size size) {
  std::vector<std::string> counts;
  bool equal = true;
  for (const auto& [name, value] : map) {
    equal = equal && size(value) == size(map.begin()->second);
    counts.push_back(std::to_string(size(value)) + " of " + name);
  }
  if (!equal) refuse(argument, argument + " has " + join(counts) + ": give as many of each");
}

void check_embeds(const Manifest& manifest, const std::string& argument, const Embeds& embeds) {
  const std::vector<TensorSpec>& outputs = manifest.graph(kPromptEncoder).outputs;
  const std::map<std::string, std::int64_t> chunks = manifest.chunks();
  std::vector<std::string> names;
  for (const TensorSpec& tensor : outputs) names.push_back(tensor.name);
  if (!same_names(embeds, names)) {
    refuse(argument, argument + " has " + listed(embeds) +
                         ", but the text encoder of this bundle's family " + manifest.family +
                         " makes " + join(names) + ": give a mapping from each name to its array");
  }
  for (const TensorSpec& tensor : outputs) {
    const Tensor& value = embeds.at(tensor.name);
    const auto found = chunks.find(tensor.name);
    const std::int64_t most = found == chunks.end() ? 1 : found->second;
    std::vector<std::string> wanted{"prompts"};
    bool fits = value.shape.size() == tensor.shape.size() && !value.shape.empty() &&
                value.shape[0] > 0;
    for (std::size_t i = 1; i < tensor.shape.size(); ++i) {
      const std::int64_t size = tensor.shape[i].size;
      wanted.push_back(std::to_string(size));
      if (!fits || value.shape[i] == size) continue;
      const bool more = most > 1 && i == 1 && value.shape[i] > 0;
      fits = more && value.shape[i] % size == 0 && value.shape[i] / size <= most;
    }
    const std::string times =
        most == 1 ? "" : ", or up to " + std::to_string(most) + " times as many tokens";
    if (!fits || elements_of(value.shape) != value.data.size()) {
      refuse(argument, argument + ": " + tensor.name + " has shape " + shape_text(value.shape) +
             ", but this bundle's family " + manifest.family + " takes [" + join(wanted) +
             "]" + times + ": use the text encoder of the bundle's own model");
    }
    const float largest = tensor.dtype == DType::float16 ? kLargestHalf
                          : tensor.dtype == DType::int64 ? 0x1p63F
                                                         : HUGE_VALF;
    for (const float number : value.data) {
      if (!std::isfinite(number) || std::abs(number) >= largest) {
        refuse(argument, argument + ": " + tensor.name + " holds values that are not finite in " +
               name_of(tensor.dtype));
      }
    }
  }
  check_counts(argument, embeds, [](const Tensor& value) { return value.shape[0]; });
}

void check_token_ids(const Manifest& manifest, const std::string& argument, const TokenIds& ids) {
  std::vector<std::string> names;
  for (const auto& [name, tokenizer] : manifest.tokenizers) names.push_back(name);
  if (!same_names(ids, names)) {
    refuse(argument, argument + " has " + listed(ids) +
                         ", but the text encoder takes token ids of " + join(names));
  }
  for (const auto& [name, tokenizer] : manifest.tokenizers) {
    const auto& rows = ids.at(name);
    if (rows.empty()) refuse(argument, argument + ": " + name + " has no rows of token ids");
    for (const auto& row : rows) {
      if (row.size() > static_cast<std::size_t>(tokenizer.max_length)) {
        refuse(argument, argument + ": " + name + " has " + std::to_string(row.size()) +
               " token ids, the text encoder takes " + std::to_string(tokenizer.max_length));
      }
    }
  }
  check_counts(argument, ids, [](const auto& rows) { return rows.size(); });
}

}  // namespace

std::size_t count(const Prompts& prompts) {
  if (const auto* texts = std::get_if<Texts>(&prompts)) return texts->size();
  if (const auto* ids = std::get_if<TokenIds>(&prompts)) {
    return ids->empty() ? 0 : ids->begin()->second.size();
  }
  const auto& embeds = std::get<Embeds>(prompts);
  return embeds.empty() ? 0 : static_cast<std::size_t>(embeds.begin()->second.shape.at(0));
}

Prompts repeat(const Prompts& prompts, std::size_t times) {
  const auto repeated = [&](const auto& rows) {
    std::decay_t<decltype(rows)> out;
    for (const auto& row : rows) out.insert(out.end(), times, row);
    return out;
  };
  if (const auto* texts = std::get_if<Texts>(&prompts)) return repeated(*texts);
  if (const auto* ids = std::get_if<TokenIds>(&prompts)) {
    TokenIds out;
    for (const auto& [name, rows] : *ids) out[name] = repeated(rows);
    return out;
  }
  Embeds out;
  for (const auto& [name, value] : std::get<Embeds>(prompts)) {
    Tensor& copy = out[name];
    copy.shape = value.shape;
    copy.shape[0] *= static_cast<std::int64_t>(times);
    const auto row = static_cast<std::ptrdiff_t>(value.data.size()) / value.shape[0];
    for (auto begin = value.data.begin(); begin != value.data.end(); begin += row) {
      for (std::size_t i = 0; i < times; ++i) {
        copy.data.insert(copy.data.end(), begin, begin + row);
      }
    }
  }
  return out;
}

Prompts check_prompts(const Manifest& manifest, const Prompts& prompts) {
  if (const auto* texts = std::get_if<Texts>(&prompts)) {
    if (texts->empty() || !all_text(*texts)) {
      refuse("prompt", "prompt must be text, or a non-empty list of texts");
    }
  } else if (const auto* ids = std::get_if<TokenIds>(&prompts)) {
    check_token_ids(manifest, "prompt", *ids);
  } else {
    check_embeds(manifest, "prompt_embeds", std::get<Embeds>(prompts));
  }
  return prompts;
}

std::optional<Prompts> check_negatives(const Manifest& manifest,
                                       const std::optional<Prompts>& given, std::size_t prompts) {
  if (!manifest.takes_negative()) {
    if (given && (!std::holds_alternative<Texts>(*given) || count(*given))) {
      const bool embeds = std::holds_alternative<Embeds>(*given);
      const std::string argument = embeds ? "negative_prompt_embeds" : "negative_prompt";
      refuse(argument, argument + " has no effect: this bundle takes none; leave it out");
    }
    return std::nullopt;
  }
  if (!given && manifest.absent_negative_prompt == "zeros") return std::nullopt;
  Prompts negatives = given.value_or(Texts{""});
  if (const auto* texts = std::get_if<Texts>(&negatives)) {
    if (!all_text(*texts)) {
      refuse("negative_prompt", "negative_prompt must be text, or a list of texts");
    }
  } else if (const auto* ids = std::get_if<TokenIds>(&negatives)) {
    check_token_ids(manifest, "negative_prompt", *ids);
  } else {
    check_embeds(manifest, "negative_prompt_embeds", std::get<Embeds>(negatives));
  }
  if (count(negatives) == 1) negatives = repeat(negatives, prompts);
  if (count(negatives) != prompts) {
    refuse("negative_prompt", std::to_string(count(negatives)) + " negative prompts for " +
                                  std::to_string(prompts) + " prompts: give one, or one each");
  }
  return negatives;
}

bool reads_a1111(const Settings::Values& values) {
  const auto* found = values.find(kSyntax);
  return found != nullptr && !found->empty() && found->front() == Scalar("a1111");
}

void check_syntax(const Settings::Values& values, const Prompts& prompts,
                  const std::string& field) {
  const auto* texts = std::get_if<Texts>(&prompts);
  if (texts == nullptr || !reads_a1111(values)) return;
  for (std::size_t i = 0; i < texts->size(); ++i) {
    if (i == 0 || (*texts)[i] != (*texts)[i - 1]) read_a1111((*texts)[i], field);
  }
}

std::int64_t missing_chunks(const Manifest& manifest, const Embeds& embeds) {
  const std::map<std::string, std::int64_t> all = manifest.chunks();
  for (const TensorSpec& tensor : manifest.graph(kPromptEncoder).outputs) {
    const auto most = all.find(tensor.name);
    if (most == all.end()) continue;
    const std::int64_t chunks = embeds.at(tensor.name).shape[1] / tensor.shape[1].size;
    if (const auto missing = filled_up(chunks, most->second) - chunks; missing > 0) return missing;
  }
  return 0;
}

}  // namespace tgate
