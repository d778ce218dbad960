#include "inputs.hpp"

#include <cmath>
#include <cstring>
#include <limits>

#include <tgate/error.hpp>

#include "binding_plan.hpp"
#include "half.hpp"
#include "parameters.hpp"

namespace tgate {
namespace {

template <class T>
void append(Bytes& out, T value) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  out.insert(out.end(), bytes, bytes + sizeof(T));
}

float to_float(double value) {  // infinite where it is too large
  constexpr double kMost = std::numeric_limits<float>::max();
  if (value > kMost) return HUGE_VALF;
  return value < -kMost ? -HUGE_VALF : static_cast<float>(value);
}

std::uint16_t to_any_half(float value) {
  constexpr std::uint16_t kInfinity = 0x7c00;
  if (std::abs(value) < kLargestHalf) return to_half(value);
  return value < 0 ? static_cast<std::uint16_t>(kInfinity | 0x8000) : kInfinity;
}

std::int64_t to_integer(double value) {  // towards zero, as far as there is room
  if (!(std::abs(value) < 0x1p63)) {
    return value < 0 ? std::numeric_limits<std::int64_t>::min()
                     : std::numeric_limits<std::int64_t>::max();
  }
  return static_cast<std::int64_t>(value);
}

void append_number(Bytes& out, double value, DType dtype) {
  switch (dtype) {
    case DType::float32: return append(out, to_float(value));
    case DType::float16: return append(out, to_any_half(to_float(value)));
    default: return append(out, to_integer(value));
  }
}

void append_scalar(Bytes& out, const Scalar& value, DType dtype) {
  if (const auto* pair = std::get_if<std::array<int, 2>>(&value)) {
    for (const int side : *pair) append_number(out, side, dtype);
  } else if (const auto* integer = std::get_if<std::int64_t>(&value);
             integer != nullptr && dtype == DType::int64) {
    append(out, *integer);
  } else if (!std::holds_alternative<std::string>(value)) {  // the manifest was checked
    append_number(out, to_double(value), dtype);
  }
}

Scalar value_of(const Call& call, const std::string& name, std::size_t image) {
  if (const auto value = call.settings.value(name, image)) return *value;
  throw Error(ErrorKind::request, name + " is missing: this bundle has no default for it", name);
}

// A size that the model is told; by default the image's own.
std::array<int, 2> told(const Call& call, const char* name, std::size_t image,
                        const std::array<int, 2>& otherwise) {
  const auto value = call.settings.value(name, image);
  const auto* pair = value ? std::get_if<std::array<int, 2>>(&*value) : nullptr;
  return pair ? *pair : otherwise;
}

// SDXL's `time_ids` (arXiv 2307.01952, section 2.2) are the original size, the top left corner of
// the crop and the target size; PixArt-alpha's (arXiv 2310.00426) are the size and its ratio.
std::vector<double> formula_row(Formula formula, const Call& call, std::size_t image) {
  const int height = call.settings.height, width = call.settings.width;
  switch (formula) {
    case Formula::time_ids: {
      const auto original = told(call, "original_size", image, {height, width});
      const auto crop = told(call, "crops_coords_top_left", image, {0, 0});
      const auto target = told(call, "target_size", image, {height, width});
      return {double(original[0]), double(original[1]), double(crop[0]),
              double(crop[1]),     double(target[0]),   double(target[1])};
    }
    case Formula::resolution: return {double(height), double(width)};
    case Formula::aspect_ratio: return {double(height) / double(width)};
    default:
      throw Error(ErrorKind::request, "this runtime makes no videos: use the Python one");
  }
}

void append_picture(Bytes& out, const Call& call, std::size_t image, const FromImage& origin,
                    DType dtype) {
  const auto found = call.pictures.find(origin.image);
  if (found == call.pictures.end()) {
    throw Error(ErrorKind::request, origin.image + " is missing: this bundle reads a picture there",
                origin.image);
  }
  const Tensor& picture = found->second;
  const std::size_t each = picture.data.size() / static_cast<std::size_t>(picture.shape[0]);
  const std::size_t prompt = image / static_cast<std::size_t>(call.images_per_prompt);
  const auto low = to_float(origin.range[0]), high = to_float(origin.range[1]);
  const float* begin = picture.data.data() + prompt * each;
  std::vector<float> pixels(begin, begin + each);
  if (low != 0.0F || high != 1.0F) {
    for (float& pixel : pixels) pixel = pixel * (high - low) + low;
  }
  const Bytes bytes = converted(pixels.data(), pixels.size(), dtype);
  out.insert(out.end(), bytes.begin(), bytes.end());
}

}  // namespace

std::map<std::string, const InputSpec*> host_inputs(const Manifest& manifest,
                                                    const std::vector<std::string>& graphs) {
  std::map<std::string, const InputSpec*> inputs;
  for (const std::string& name : graphs) {
    for (const InputSpec& tensor : manifest.graph(name).inputs) {
      if (std::holds_alternative<FromParameter>(tensor.origin) ||
          std::holds_alternative<FromFormula>(tensor.origin) ||
          std::holds_alternative<FromImage>(tensor.origin)) {
        inputs.emplace(buffer_of(tensor), &tensor);
      }
    }
  }
  return inputs;
}

Bytes host_rows(const Manifest& manifest, const Call& call, std::size_t first, std::size_t batch,
                const InputSpec& tensor) {
  Bytes rows;
  for (std::size_t image = first; image < first + batch; ++image) {
    if (const auto* picture = std::get_if<FromImage>(&tensor.origin)) {
      append_picture(rows, call, image, *picture, tensor.dtype);
    } else if (const auto* formula = std::get_if<FromFormula>(&tensor.origin)) {
      for (const double number : formula_row(formula->formula, call, image)) {
        append_number(rows, number, tensor.dtype);
      }
    } else {
      const std::string& name = std::get<FromParameter>(tensor.origin).parameter;
      Scalar value = value_of(call, name, image);
      if (name == "guidance_scale" && by_prompt_alone(manifest, call.guidance_scale(image))) {
        value = 1.0;
      }
      append_scalar(rows, value, tensor.dtype);
    }
  }
  return rows;
}

Bytes encoder_rows(const Call& call, std::size_t first, std::size_t batch, const InputSpec& tensor,
                   bool negative) {
  const auto& origin = std::get<FromParameter>(tensor.origin);
  const bool applies = !origin.of || (*origin.of == Of::negative_prompt) == negative;
  Bytes rows;
  for (std::size_t image = first; image < first + batch; ++image) {
    if (applies) {
      append_scalar(rows, value_of(call, origin.parameter, image), tensor.dtype);
    } else {
      append_number(rows, 0.0, tensor.dtype);
    }
  }
  return rows;
}

Bytes converted(const float* values, std::size_t count, DType dtype) {
  Bytes out;
  out.reserve(count * bytes_of(dtype));
  for (std::size_t i = 0; i < count; ++i) append_number(out, double(values[i]), dtype);
  return out;
}

}  // namespace tgate
