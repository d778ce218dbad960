// Prompts of several runs of the text encoder, of which some tokens have weights.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <tgate/manifest.hpp>

#include "bundle_tokenizers.hpp"
#include "prompt_syntax.hpp"

namespace tgate {

// Tokens between a start and an end, and their weights.
struct Chunk {
  std::vector<std::int64_t> ids;
  std::vector<double> weights;
};

struct Chunks {
  std::vector<Chunk> chunks;  // one or more
  std::string left_out;       // the text that did not fit
};

// Fills `most` chunks or fewer of `room` tokens with a prompt's tokens, as A1111 does.
Chunks split_chunks(const Tokenizer& tokenizer, const std::vector<Piece>& pieces, std::size_t room,
                    std::size_t most);

// How many chunks there are with those of the empty text that fill a prompt up: the smallest
// divisor of `most` that is no less than `chunks`, which is 1 to `most`.
std::int64_t filled_up(std::int64_t chunks, std::int64_t most);

// What the text encoder reads for a chunk, and what becomes of what it makes of it.
struct EncoderRun {
  // By tokenizer, a start and an end included; shorter rows are padded.
  std::map<std::string, std::vector<std::int64_t>> ids;
  std::map<std::string, std::vector<double>> weights;  // of all its tokens; none where all are 1
};

// The runs of the text encoder for a prompt, as many as divide the bundle's chunks. Adds to the
// warnings what is left out.
std::vector<EncoderRun> encoder_runs(const Manifest& manifest, Tokenizers& tokenizers,
                                     const std::vector<Piece>& pieces,
                                     std::vector<std::string>& warnings);

// Multiplies tokens [T,D] with their weights; the mean of each tokenizer's columns stays as it was.
// Throws Error where the manifest contradicts itself.
void apply_weights(const Manifest& manifest, const EncoderRun& run, std::int64_t width,
                   std::vector<double>& tokens);

}  // namespace tgate
