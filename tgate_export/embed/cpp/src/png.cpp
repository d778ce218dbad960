#include <cerrno>
#include <cstring>

#include <png.h>

#include <tgate/pipeline.hpp>

namespace tgate {

void write_png(const Image& image, const std::filesystem::path& file) {
  png_image header{};
  header.version = PNG_IMAGE_VERSION;
  header.width = static_cast<png_uint_32>(image.width);
  header.height = static_cast<png_uint_32>(image.height);
  header.format = PNG_FORMAT_RGB;
  // Sides that PNG can have; their product does not fit 32 bits, as libpng's own has it.
  const bool sides = image.width > 0 && image.height > 0;
  const std::uint64_t pixels = static_cast<std::uint64_t>(header.width) * header.height;
  if (!sides || image.rgb.size() != 3 * pixels || 3 * pixels > 0x7fffffff) {
    throw Error(ErrorKind::request, "an image of " + std::to_string(image.width) + "x" +
                                        std::to_string(image.height) + " has " +
                                        std::to_string(image.rgb.size()) + " bytes");
  }
  errno = 0;
  if (png_image_write_to_file(&header, file.c_str(), 0, image.rgb.data(), 0, nullptr) == 0) {
    const std::string reason = errno ? std::strerror(errno) : header.message;
    throw Error(ErrorKind::file, "cannot write " + file.string() + ": " + reason);
  }
}

}  // namespace tgate
