// Prompts on their way to the prompt encoder, and what becomes of what it makes of them.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "backends/backend.hpp"
#include "binding_plan.hpp"
#include "bundle_tokenizers.hpp"
#include "call.hpp"
#include "inputs.hpp"
#include "prompt_chunks.hpp"

namespace tgate {

// The images `first`, `first + 1`, ... of a call, as many as the run's batch.
struct Part {
  const Call& call;
  int first;
};

class TextEncoder {
 public:
  // `launches`: of the encoder on the prompts, and on the negative ones where there are some.
  TextEncoder(const Manifest& manifest, const BindingPlan& plan, Memory& memory,
              std::vector<Execute> launches, std::int64_t batch);

  // Tokenizes, and fills every buffer that the host makes. Returns warnings.
  std::vector<std::string> prepare(Tokenizers& tokenizers, const Part& part);
  // Gives the denoiser the text conditions of the prompts that `prepare` was last told.
  void encode(const Part& part);

 private:
  // The prompts of a part, or its negative prompts.
  struct Side {
    bool negative;
    std::string prefix;                         // of its buffers
    std::vector<std::vector<EncoderRun>> runs;  // of each image; none where nothing is encoded
  };
  // What the encoder made [B, ...], by its outputs by token: of each launch.
  using Made = std::map<std::string, std::vector<Bytes>>;

  void prepare(Tokenizers& tokenizers, const Part& part, const Prompts& prompts, Side& side,
               std::vector<std::string>& warnings);
  std::vector<EncoderRun> runs_of(Tokenizers& tokenizers, const Part& part,
                                  const Prompts& prompts, std::size_t image,
                                  std::vector<std::string>& warnings) const;
  void write_tokens(const Side& side, std::size_t number);
  void write_padded(const Slot& slot, const std::string& tokenizer, const Side& side,
                    std::size_t number, bool mask);
  void write_given(const Part& part, const Embeds& embeds, const Side& side);
  void encode(const Part& part, const Prompts& prompts, const Side& side);
  void join(const Part& part, const Embeds* given, const Side& side, const Made& made);
  Bytes weighted(const EncoderRun& run, const TensorSpec& tensor, Bytes tokens) const;
  void replace_negatives(const Part& part);
  Bytes read(const Slot& slot) const;
  void write(const Slot& slot, const Bytes& bytes) const;
  std::size_t batch() const { return static_cast<std::size_t>(batch_); }

  const Manifest& manifest_;
  const BindingPlan& plan_;
  Memory& memory_;
  std::vector<Execute> launches_;
  std::int64_t batch_;
  std::map<std::string, std::int64_t> chunks_;  // see Manifest::chunks
  Side prompts_{false, "", {}};
  Side negatives_{true, kNegative, {}};
};

}  // namespace tgate
