// The tokenizers of a bundle.
#pragma once

#include <map>
#include <string>

#include <tgate/manifest.hpp>

#include "tokenizer.hpp"

namespace tgate {

// Reads tokenizers when a text first needs them.
class Tokenizers {
 public:
  explicit Tokenizers(const Bundle& bundle) : bundle_(bundle) {}

  const Tokenizer& get(const std::string& name);

 private:
  const Bundle& bundle_;
  std::map<std::string, Tokenizer> loaded_;
};

}  // namespace tgate
