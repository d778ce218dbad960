// Generates images from the command line: `tgate-export generate` without Python.
#include <csignal>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include <unistd.h>

#include <nlohmann/json.hpp>

#include <tgate/pipeline.hpp>

#include "options.hpp"

namespace {

volatile std::sig_atomic_t interrupted = 0;

bool on_step(const tgate::StepInfo& info) {
  if (isatty(STDERR_FILENO)) {
    std::fprintf(stderr, "\r%s %d/%d ", std::string(info.phase).c_str(), info.step + 1,
                 info.evaluations);
    if (info.step + 1 == info.evaluations) std::fputs("\r\x1b[K", stderr);
  }
  return interrupted == 0;
}

std::vector<std::filesystem::path> save(const std::vector<tgate::Image>& images,
                                        const std::filesystem::path& out) {
  std::vector<std::filesystem::path> files;
  const std::size_t digits = std::to_string(images.size() - 1).size();
  for (std::size_t i = 0; i < images.size(); ++i) {
    std::filesystem::path file = out;
    if (images.size() > 1) {
      const std::string number = std::to_string(i);
      file.replace_filename(out.stem().string() + "-" + std::string(digits - number.size(), '0') +
                            number + out.extension().string());
    }
    tgate::write_png(images[i], file);
    files.push_back(file);
  }
  return files;
}

using Json = nlohmann::ordered_json;

Json timings_json(const tgate::Timings& timings) {
  double sampler = 0;
  Json phases = Json::object(), steps = Json::array();
  for (const tgate::StepTiming& step : timings.steps) {  // in the order in which they first ran
    Json& phase = phases[step.phase];
    if (phase.is_null()) phase = {{"evaluations", 0}, {"seconds", 0.0}};
    phase["evaluations"] = phase["evaluations"].get<int>() + 1;
    phase["seconds"] = phase["seconds"].get<double>() + step.denoiser;
  }
  for (const tgate::StepTiming& step : timings.steps) {
    sampler += step.sampler;
    steps.push_back(
        {{"phase", step.phase}, {"denoiser_s", step.denoiser}, {"sampler_s", step.sampler}});
  }
  return {{"total_s", timings.total},
          {"text_encoder_s", timings.text_encoder},
          {"vae_encoder_s", 0.0},
          {"vae_decoder_s", timings.vae_decoder},
          {"sampler_s", sampler},
          {"outside_engines_s", timings.outside_engines()},
          {"outside_engines_fraction", timings.outside_engines() / timings.total},
          {"phases", phases},
          {"steps", steps}};
}

// What a parameter is called where names are short.
std::string short_name(const std::string& name) {
  return name == "num_inference_steps" ? "steps" : name;
}

void print_json(const tgate::Pipeline& pipeline, const tgate::Result& result,
                const std::vector<std::filesystem::path>& files) {
  const tgate::Settings& settings = result.settings;
  Json images = Json::array();
  for (const auto& file : files) images.push_back(file.string());
  Json report{{"images", images},
              {"backend", pipeline.backend()},
              {"backend_reason", pipeline.backend_reason()},
              {"device_memory", nullptr},
              {"seed", settings.seed}};
  for (const auto& [name, values] : settings.parameters) {
    Json& value = report[short_name(name)];
    if (values.at(0)) std::visit([&](const auto& scalar) { value = scalar; }, *values[0]);
  }
  report["width"] = settings.width;
  report["height"] = settings.height;
  report["hires"] = nullptr;  // Python's alone, as is a refiner
  report["refiner"] = nullptr;
  report["timings"] = timings_json(result.timings);
  std::printf("%s\n", report.dump(1, ' ', false, Json::error_handler_t::replace).c_str());
}

void generate(int argc, char** argv) {
  Arguments arguments = parse_arguments(argc, argv);
  tgate::Pipeline pipeline(arguments.bundle, arguments.options);
  std::signal(SIGINT, [](int) {
    interrupted = 1;
    std::signal(SIGINT, SIG_DFL);  // a second one ends a step that does not
  });
  add_settings(pipeline.manifest(), arguments.settings, arguments.request);
  arguments.request.on_step_end = on_step;
  const tgate::Result result = pipeline(arguments.request);
  for (const std::string& warning : result.warnings) {
    std::fprintf(stderr, "warning: %s\n", warning.c_str());
  }
  const auto files = save(result.images, arguments.out);
  if (arguments.json) {
    print_json(pipeline, result, files);
    return;
  }
  std::string names;
  for (const auto& file : files) names += (names.empty() ? "" : ", ") + file.string();
  std::fprintf(stderr, "Wrote %s (seed %llu, %s): %.2f s\n", names.c_str(),
               static_cast<unsigned long long>(result.settings.seed), pipeline.backend().c_str(),
               result.timings.total);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    generate(argc, argv);
    return 0;
  } catch (const tgate::Error& error) {
    const bool cancelled = error.kind() == tgate::ErrorKind::cancelled;
    std::fprintf(stderr, "error: %s\n", cancelled ? "interrupted" : error.what());
    return error.exit_code();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
