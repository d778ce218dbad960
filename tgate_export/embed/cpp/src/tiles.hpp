// Tiles of large images: where they lie, and how what a decoder makes of them is blended.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include <tgate/manifest.hpp>
#include <tgate/request.hpp>

namespace tgate {

// Where the tiles of one image size lie, in latents.
struct Tiling {
  std::vector<std::int64_t> tops;   // first rows
  std::vector<std::int64_t> lefts;  // first columns
  std::int64_t height;              // of a tile
  std::int64_t width;
  std::int64_t downscale;  // pixels of a side for one latent
};

// Of images of `height` x `width` pixels.
Tiling tiling_of(const Manifest& manifest, const Tiles& tiles, std::int64_t height,
                 std::int64_t width);

// One tile of latents [B,C,h,w]: [B,C,tile,tile].
std::vector<float> cut(const Tensor& latents, const Tiling& tiling, std::int64_t top,
                       std::int64_t left);

// What a decoder makes of tiles, put together: each fades in over those above and left of it. As in
// diffusers' `AutoencoderKL.tiled_decode`, a tile is first blended with the one above it, and then
// with the one to its left, and these are blended already.
class Canvas {
 public:
  Canvas(const Tiling& tiling, std::int64_t batch);

  // Puts a tile [B,h,w,3] in its place. Row by row, from left to right.
  void add(Tensor tile, std::int64_t top, std::int64_t left);
  // [B,H,W,3], with values outside [0, 1] limited.
  Tensor take();

 private:
  struct Placed {
    std::int64_t top;
    std::int64_t left;
    Tensor tile;
  };

  Tiling tiling_;
  Tensor whole_;
  std::map<std::int64_t, Placed> above_;  // the last tile by its first column
  std::int64_t before_ = -1;              // first column of the tile before, in the same row
};

}  // namespace tgate
