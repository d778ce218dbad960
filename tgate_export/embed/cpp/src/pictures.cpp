#include "pictures.hpp"

#include <algorithm>

#include <tgate/error.hpp>

#include "counts.hpp"
#include "text.hpp"

namespace tgate {
namespace {

// What the VAE encoder makes the first sample of.
constexpr const char* kImage = "image";

[[noreturn]] void refuse(const std::string& name, const std::string& message) {
  throw Error(ErrorKind::request, message, name);
}

void check_name(const Manifest& manifest, const std::string& name) {
  if (name == kImage) {
    refuse(name, "this runtime begins with noise alone: a run that begins with an image is for the "
                 "Python one");
  }
  const Parameter* parameter = manifest.parameters.find(name);
  if (parameter == nullptr || parameter->type != ParameterType::image) {
    refuse(name, "this bundle reads no picture " + quote(name) + ": leave it out");
  }
}

void check_tensor(const std::string& name, const Tensor& value, std::size_t prompts) {
  const std::vector<std::int64_t>& shape = value.shape;
  const bool is_picture = shape.size() == 4 && shape[3] == 3;
  if (!is_picture || elements_of(shape) != value.data.size()) {
    refuse(name, name + " has shape " + shape_text(shape) + " and " +
                     std::to_string(value.data.size()) + " values, expected [1 or " +
                     std::to_string(prompts) + ", H, W, 3]");
  }
  if (shape[0] != 1 && static_cast<std::size_t>(shape[0]) != prompts) {
    refuse(name, std::to_string(shape[0]) + " pictures " + quote(name) + " for " +
                     std::to_string(prompts) + " prompts: give one, or one each");
  }
  const bool in_range = std::all_of(value.data.begin(), value.data.end(),
                                    [](float v) { return v >= 0.0F && v <= 1.0F; });  // no NaN
  if (!in_range) refuse(name, name + " has values that are not in [0, 1]");
}

// The size of the run is that of its pictures.
void check_side(const std::string& name, const char* side, std::int64_t found,
                std::optional<int>& asked) {
  if (asked && *asked != found) {
    refuse(name, name + " has a " + side + " of " + std::to_string(found) + ", the run of " +
                     std::to_string(*asked) + ": scale or crop the picture to it");
  }
  asked = static_cast<int>(found);  // far below 2^31: the picture is in memory
}

}  // namespace

std::map<std::string, Tensor> check_pictures(const Manifest& manifest,
                                             const std::map<std::string, Tensor>& given,
                                             std::size_t prompts, Sides& sides) {
  for (const auto& [name, value] : given) check_name(manifest, name);
  for (const auto& [name, parameter] : manifest.parameters) {
    const bool wanted = parameter.type == ParameterType::image && name != kImage;
    if (wanted && given.count(name) == 0) {
      refuse(name, name + " is missing: this bundle reads a picture there");
    }
  }
  std::map<std::string, Tensor> pictures;
  for (const auto& [name, value] : given) {
    check_tensor(name, value, prompts);
    check_side(name, "height", value.shape[1], sides.height);
    check_side(name, "width", value.shape[2], sides.width);
    Tensor& picture = pictures[name];
    picture = value;
    if (value.shape[0] == 1) {
      picture.shape[0] = static_cast<std::int64_t>(prompts);
      for (std::size_t copy = 1; copy < prompts; ++copy) {
        picture.data.insert(picture.data.end(), value.data.begin(), value.data.end());
      }
    }
  }
  return pictures;
}

}  // namespace tgate
