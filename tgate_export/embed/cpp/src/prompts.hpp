// What a call says in words, token ids, or what a text encoder made of them.
#pragma once

#include <optional>

#include <tgate/manifest.hpp>
#include <tgate/request.hpp>

namespace tgate {

std::size_t count(const Prompts& prompts);
Prompts repeat(const Prompts& prompts, std::size_t times);  // copies side by side

// Checked prompts. Throws Error, kind `request`.
Prompts check_prompts(const Manifest& manifest, const Prompts& prompts);

// Checked negative prompts, one for each of `prompts`; none where the bundle takes none, and where
// an absent negative prompt is zeros. Throws Error, kind `request`.
std::optional<Prompts> check_negatives(const Manifest& manifest,
                                       const std::optional<Prompts>& given, std::size_t prompts);

}  // namespace tgate
