#include "bundle_tokenizers.hpp"

#include "bundle_files.hpp"
#include "files.hpp"

namespace tgate {

const Tokenizer& Tokenizers::get(const std::string& name) {
  const auto found = loaded_.find(name);
  if (found != loaded_.end()) return found->second;
  const std::string& file = bundle_.manifest.tokenizers.find(name)->file;
  const std::string text = read_bundle_file(bundle_, file, kMostTableBytes);
  const std::string where = bundle_.file(file).string();
  return loaded_.emplace(name, Tokenizer(text, where)).first->second;
}

}  // namespace tgate
