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
  if (image.rgb.size() != PNG_IMAGE_SIZE(header)) {
    throw Error(ErrorKind::request, "an image of " + std::to_string(image.width) + "x" +
                                        std::to_string(image.height) + " has " +
                                        std::to_string(image.rgb.size()) + " bytes");
  }
  errno = 0;
  if (png_image_write_to_file(&header, file.c_str(), 0, image.rgb.data(), 0, nullptr) == 0) {
    const std::string reason = errno ? std::strerror(errno) : header.message;
    throw Error(ErrorKind::job, "cannot write " + file.string() + ": " + reason);
  }
}

}  // namespace tgate
