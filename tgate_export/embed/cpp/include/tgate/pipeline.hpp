// Generate images with a bundle: a graph for each phase, one weighted sum a step.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include <tgate/error.hpp>
#include <tgate/manifest.hpp>
#include <tgate/request.hpp>

namespace tgate {

struct Options {
  // auto, onnxruntime, openvino, openvino:bf16, tensorrt or tensorrt-rtx, as far as compiled in.
  std::string backend = "auto";
  // Compare every file of the bundle with its sha256 first.
  bool check_hashes = true;
  // libonnxruntime.so; when empty $TGATE_ONNXRUNTIME, or libonnxruntime.so.1 where the loader looks.
  std::filesystem::path onnxruntime_library;
  // Threads that share the work of one graph on the CPU; 0: as many as the library likes, or as a
  // container's CPU quota has processors.
  int threads = 0;
  // Of OpenVINO: the graphs of a file of more bytes of weights are compiled in one model, which packs
  // them once. It copies the tensors of its graphs: nothing beside a large one's step.
  std::uint64_t join_weights_above = 64 << 20;
  // Of TensorRT: capture each launch once and replay it.
  bool cuda_graphs = true;
};

// A loaded bundle. Engines load when they are first needed; buffers are kept between calls of the
// same shape. One thread at a time may call a pipeline; different pipelines share nothing.
class Pipeline {
 public:
  // Throws Error when the bundle or the backend cannot be used.
  explicit Pipeline(const std::filesystem::path& bundle, const Options& options = {});
  ~Pipeline();
  Pipeline(Pipeline&&) noexcept;
  Pipeline& operator=(Pipeline&&) noexcept;

  // Generates one image for each prompt, or several. Throws Error.
  Result operator()(const Request& request);

  const Manifest& manifest() const;
  const std::string& backend() const;         // its name
  const std::string& backend_reason() const;  // why it was chosen

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Writes an 8-bit RGB PNG. Throws Error.
void write_png(const Image& image, const std::filesystem::path& file);

// Of this library, such as "0.1.0".
const char* version();

}  // namespace tgate
