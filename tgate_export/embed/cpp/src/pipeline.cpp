#include <tgate/pipeline.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <optional>

#include "backends/backend.hpp"
#include "bundle_files.hpp"
#include "call.hpp"
#include "files.hpp"
#include "rebuild.hpp"
#include "run.hpp"
#include "sampler_table.hpp"
#include "step_plan.hpp"

namespace tgate {
namespace {

// Images [B,H,W,3] in [0, 1] in 8 bits, rounded as diffusers does: halves to even.
void append_images(const Tensor& tensor, std::vector<Image>& images) {
  const auto pixels = static_cast<std::size_t>(tensor.shape[1] * tensor.shape[2] * 3);
  for (std::size_t begin = 0; begin < tensor.data.size(); begin += pixels) {
    Image image{static_cast<int>(tensor.shape[2]), static_cast<int>(tensor.shape[1]), {}};
    image.rgb.reserve(pixels);
    for (std::size_t i = begin; i < begin + pixels; ++i) {
      const float value = std::nearbyint(tensor.data[i] * 255.0F);
      // Not clamp(): NaN becomes 0, too.
      image.rgb.push_back(value > 0 ? static_cast<std::uint8_t>(value < 255 ? value : 255.0F) : 0);
    }
    images.push_back(std::move(image));
  }
}

void append(const Tensor& part, Tensor& all) {
  if (all.shape.empty()) {
    all = part;
    return;
  }
  all.shape[0] += part.shape[0];
  all.data.insert(all.data.end(), part.data.begin(), part.data.end());
}

// Whether a graph's input is of a video.
bool is_of_video(const InputSpec& tensor) {
  const auto* origin = std::get_if<FromFormula>(&tensor.origin);
  return origin != nullptr && (origin->formula == Formula::video_ids ||
                               origin->formula == Formula::frame_guidance_scale);
}

Bundle open_image_bundle(const std::filesystem::path& path, bool check_hashes) {
  Bundle bundle = open_bundle(path, check_hashes);
  const Manifest& manifest = bundle.manifest;
  bool video = manifest.frames || !manifest.takes_prompt();
  for (const auto& [name, graph] : manifest.graphs) {
    video = video || std::any_of(graph.inputs.begin(), graph.inputs.end(), is_of_video);
  }
  if (video) {
    throw Error(ErrorKind::request,
                path.string() + ": this runtime makes no videos: use the Python one");
  }
  return bundle;
}

}  // namespace

struct Pipeline::Impl {
  Impl(const std::filesystem::path& path, const Options& options)
      : bundle(open_image_bundle(path, options.check_hashes)),
        selected(select_backend(bundle, options)),
        tokenizers(bundle) {}

  const SamplerSteps& sampler_steps(const std::string& scheduler, int steps) {
    auto found = tables.find(scheduler);
    if (found == tables.end()) {
      const std::string& file = bundle.manifest.samplers.find(scheduler)->file;
      const std::string text = read_bundle_file(bundle, file, kMostTableBytes);
      const std::string where = bundle.file(file).string();
      found = tables.emplace(scheduler, parse_sampler_table(text, where)).first;
    }
    return found->second.for_steps(steps);
  }

  // Allocates and binds for a run's shape, or returns what the last call of it used.
  PreparedRun& prepare(RunShape shape) {
    if (!prepared || !(prepared->shape() == shape)) {
      prepared.reset();  // free the old buffers first
      prepared.emplace(*selected.backend, bundle.manifest, std::move(shape));
    }
    return *prepared;
  }

  void run(const Call& call, int first, int batch, const StepCallback& callback, Result& result);

  const Bundle bundle;
  const Selected selected;
  Tokenizers tokenizers;
  std::map<std::string, SamplerTable> tables;
  std::optional<PreparedRun> prepared;
};

void Pipeline::Impl::run(const Call& call, int first, int batch, const StepCallback& callback,
                         Result& result) {
  const Settings& settings = call.settings;
  const SamplerSteps& sampler = sampler_steps(call.scheduler(), call.num_inference_steps());
  const std::vector<const Guard*> guards =
      plan_steps(bundle.manifest.method(), call.method, sampler.step_of_evaluation);
  check_graphs(bundle, guards, call.method);
  std::vector<std::string> phases;
  for (const Guard* guard : guards) phases.push_back(guard->phase);
  PreparedRun& run =
      prepare({batch, settings.height, settings.width, phases, sampler.draws_noise()});
  Backend& backend = *selected.backend;
  const auto started = std::chrono::steady_clock::now();
  for (const auto& warnings :
       {backend.take_warnings(), run.write_inputs(tokenizers, {call, first}, sampler)}) {
    result.warnings.insert(result.warnings.end(), warnings.begin(), warnings.end());
  }
  // Launches may only be queued: nothing waits for the device before the end.
  const Mark encode_started = backend.mark();
  run.encode({call, first});
  const Mark encoded = backend.mark();
  std::vector<Mark> marks;  // before, between and after the two launches of every step
  marks.reserve(3 * phases.size());
  for (std::size_t step = 0; step < phases.size(); ++step) {
    marks.push_back(backend.mark());
    run.denoise(step);
    marks.push_back(backend.mark());
    run.solve(step);
    marks.push_back(backend.mark());
    if (callback && !callback({static_cast<int>(step), static_cast<int>(phases.size()),
                               phases[step], sampler.timesteps[step],
                               [&run, step] { return run.latents_after(step); }})) {
      backend.synchronize();
      throw Error(ErrorKind::cancelled, "cancelled after step " + std::to_string(step + 1) +
                                            " of " + std::to_string(phases.size()));
    }
  }
  Mark decode_started, decoded;
  if (call.output == Output::latents) {
    append(run.latents_after(phases.size() - 1), result.latents);
  } else {
    decode_started = backend.mark();
    run.decode();
    decoded = backend.mark();
    append_images(run.images(), result.images);
  }
  backend.synchronize();
  Timings& timings = result.timings;
  timings.total +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  timings.text_encoder += backend.seconds(encode_started, encoded);
  for (std::size_t step = 0; step < phases.size(); ++step) {
    timings.steps.push_back({phases[step],
                             backend.seconds(marks[3 * step], marks[3 * step + 1]),
                             backend.seconds(marks[3 * step + 1], marks[3 * step + 2])});
  }
  if (call.output == Output::images) {
    timings.vae_decoder += backend.seconds(decode_started, decoded);
  }
}

Pipeline::Pipeline(const std::filesystem::path& bundle, const Options& options)
    : impl_(std::make_unique<Impl>(bundle, options)) {}
Pipeline::~Pipeline() = default;
Pipeline::Pipeline(Pipeline&&) noexcept = default;
Pipeline& Pipeline::operator=(Pipeline&&) noexcept = default;

Result Pipeline::operator()(const Request& request) {
  const Manifest& manifest = impl_->bundle.manifest;
  const Call call = make_call(manifest, request);
  Result result;
  result.settings = call.settings;
  for (int first = 0; first < call.images;) {
    const int left = call.images - first;
    const int batch = impl_->selected.backend->batch_size(
        static_cast<int>(std::min<std::int64_t>(left, manifest.batch.max)));
    impl_->run(call, first, batch, request.on_step_end, result);
    first += batch;
  }
  return result;
}

const Manifest& Pipeline::manifest() const { return impl_->bundle.manifest; }
const std::string& Pipeline::backend() const { return impl_->selected.backend->name(); }
const std::string& Pipeline::backend_reason() const { return impl_->selected.reason; }

double Timings::outside_engines() const {
  double engines = text_encoder + vae_decoder;
  for (const StepTiming& step : steps) engines += step.denoiser;
  return total - engines;
}

const char* version() { return TGATE_VERSION; }

}  // namespace tgate
