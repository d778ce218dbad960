// Where an ONNX model has its tensors' data: found out before an engine reads the model.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace tgate {

// The file beside the model that may hold its weights.
struct WeightsFile {
  std::string name;
  std::uint64_t bytes;
};

// Walks over a serialized ModelProto once. A tensor has its data in the model, as many as its shape
// asks for; an initializer of the main graph has them there, or within the file of weights.
// Throws Error, kind `bundle`: anything else would let the model read other files, or the memory of
// this process. `where` is what errors call the model.
void check_onnx(std::string_view model, const std::optional<WeightsFile>& weights,
                const std::string& where);

}  // namespace tgate
