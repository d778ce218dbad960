#include "tiles.hpp"

#include <algorithm>
#include <utility>

namespace tgate {
namespace {

constexpr std::int64_t kColours = 3;

std::vector<std::int64_t> starts(std::int64_t length, std::int64_t tile, std::int64_t overlap) {
  if (length <= tile) return {0};
  std::vector<std::int64_t> found;
  for (std::int64_t at = 0; at < length - tile; at += tile - overlap) found.push_back(at);
  found.push_back(length - tile);
  return found;
}

std::size_t size_of(std::int64_t value) { return static_cast<std::size_t>(value); }

// Of a pixel's first colour in [B,H,W,3].
std::size_t offset(const Tensor& images, std::int64_t image, std::int64_t row,
                   std::int64_t column) {
  return size_of(((image * images.shape[1] + row) * images.shape[2] + column) * kColours);
}

void fade(const float* old, float* fresh, std::int64_t at, std::int64_t length) {
  const float share = static_cast<float>(at) / static_cast<float>(length);
  for (std::int64_t colour = 0; colour < kColours; ++colour) {
    fresh[colour] = old[colour] * (1 - share) + fresh[colour] * share;
  }
}

}  // namespace

Tiling tiling_of(const Manifest& manifest, const Tiles& tiles, std::int64_t height,
                 std::int64_t width) {
  const std::int64_t latent = manifest.latent_downscale;
  const std::int64_t size = tiles.size / latent, overlap = tiles.overlap / latent;
  const std::int64_t rows = height / latent, columns = width / latent;
  return {starts(rows, size, overlap), starts(columns, size, overlap), std::min(size, rows),
          std::min(size, columns), latent};
}

std::vector<float> cut(const Tensor& latents, const Tiling& tiling, std::int64_t top,
                       std::int64_t left) {
  const std::int64_t planes = latents.shape[0] * latents.shape[1];
  std::vector<float> tile;
  tile.reserve(size_of(planes * tiling.height * tiling.width));
  for (std::int64_t plane = 0; plane < planes; ++plane) {
    for (std::int64_t row = top; row < top + tiling.height; ++row) {
      const auto begin = latents.data.begin() +
                         (plane * latents.shape[2] + row) * latents.shape[3] + left;
      tile.insert(tile.end(), begin, begin + tiling.width);
    }
  }
  return tile;
}

Canvas::Canvas(const Tiling& tiling, std::int64_t batch) : tiling_(tiling) {
  whole_.shape = {batch, (tiling.tops.back() + tiling.height) * tiling.downscale,
                  (tiling.lefts.back() + tiling.width) * tiling.downscale, kColours};
  whole_.data.resize(size_of(batch) * size_of(whole_.shape[1]) * size_of(whole_.shape[2]) *
                     size_of(kColours));
}

void Canvas::add(Tensor tile, std::int64_t top, std::int64_t left) {
  const std::int64_t batch = tile.shape[0], height = tile.shape[1], width = tile.shape[2];
  top *= tiling_.downscale;
  left *= tiling_.downscale;
  if (left == 0) before_ = -1;
  if (const auto found = above_.find(left); found != above_.end()) {
    const Placed& above = found->second;
    const std::int64_t length = above.top + height - top;
    for (std::int64_t image = 0; image < batch; ++image) {
      for (std::int64_t row = 0; row < length; ++row) {
        for (std::int64_t column = 0; column < width; ++column) {
          fade(&above.tile.data[offset(above.tile, image, top - above.top + row, column)],
               &tile.data[offset(tile, image, row, column)], row, length);
        }
      }
    }
  }
  if (before_ >= 0) {
    const Placed& before = above_.at(before_);
    const std::int64_t length = before.left + width - left;
    for (std::int64_t image = 0; image < batch; ++image) {
      for (std::int64_t row = 0; row < height; ++row) {
        for (std::int64_t column = 0; column < length; ++column) {
          fade(&before.tile.data[offset(before.tile, image, row, left - before.left + column)],
               &tile.data[offset(tile, image, row, column)], column, length);
        }
      }
    }
  }
  for (std::int64_t image = 0; image < batch; ++image) {
    for (std::int64_t row = 0; row < height; ++row) {
      const auto begin =
          tile.data.begin() + static_cast<std::ptrdiff_t>(offset(tile, image, row, 0));
      std::copy_n(begin, width * kColours,
                  whole_.data.begin() +
                      static_cast<std::ptrdiff_t>(offset(whole_, image, top + row, left)));
    }
  }
  before_ = left;
  above_.insert_or_assign(left, Placed{top, left, std::move(tile)});
}

Tensor Canvas::take() {
  for (float& value : whole_.data) value = std::min(std::max(value, 0.0F), 1.0F);
  return std::move(whole_);
}

}  // namespace tgate
