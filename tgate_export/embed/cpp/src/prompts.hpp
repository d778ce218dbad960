// What a call says in words, token ids, or what a text encoder made of them.
#pragma once

#include <optional>
#include <string>

#include <tgate/manifest.hpp>
#include <tgate/request.hpp>

namespace tgate {

// The parameter that says how texts are read.
inline const std::string kSyntax = "prompt_syntax";

std::size_t count(const Prompts& prompts);
Prompts repeat(const Prompts& prompts, std::size_t times);  // copies side by side

// Checked prompts. Throws Error, kind `request`.
Prompts check_prompts(const Manifest& manifest, const Prompts& prompts);

// Checked negative prompts, one for each of `prompts`; none where the bundle takes none, and where
// an absent negative prompt is zeros. Throws Error, kind `request`.
std::optional<Prompts> check_negatives(const Manifest& manifest,
                                       const std::optional<Prompts>& given, std::size_t prompts);

// Whether a call reads texts with weights.
bool reads_a1111(const Settings::Values& values);

// Refuses texts that cannot be read as the call says; `field` is the argument that they are. Throws
// Error, kind `request`: names the argument and the place in it.
void check_syntax(const Settings::Values& values, const Prompts& prompts, const std::string& field);

// How many chunks of the empty text fill embeddings up; see `filled_up`.
std::int64_t missing_chunks(const Manifest& manifest, const Embeds& embeds);

}  // namespace tgate
