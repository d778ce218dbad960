#include "options.hpp"

#include <getopt.h>

#include <charconv>
#include <cstdio>
#include <cstdlib>

namespace {

constexpr const char* kHelp = R"(Usage: tgate_generate BUNDLE --prompt TEXT [OPTIONS]

Generate images with a bundle: full graph before the gate step, gated graph from it on.

  --prompt TEXT            What to show.
  --negative-prompt TEXT   What to avoid.
  --steps N                Denoising steps.
  --gate-step N            First step that reuses cross-attention and drops guidance; at --steps or
                           more there is none. Default: the bundle's, scaled to --steps.
  --sp-interval N          Before the gate step, compute self-attention in steps that are multiples
                           of N; 1: in every step.
  --fi-interval N          The same from the gate step on.
  --warm-up N              Compute self-attention in steps 0..N, whatever --sp-interval.
  --guidance-scale X       1 or less: no guidance.
  --guidance-rescale X     0 to 1.
  --clip-skip N            Skip this many of the CLIP text encoder's last layers.
  --prompt-syntax NAME     How prompts are read: plain, or a1111, with weights such as (word:1.3),
                           BREAK and chunks of tokens.
  --scheduler NAME         Sampler.
  --set NAME=VALUE         Any parameter of the bundle's table; `tgate-export inspect` lists them.
                           A pair is A,B. May be given again.
  --seed N                 Same seed, same picture. Default: random.
  --num-images N
  --size WxH               For a bundle with a dynamic size; N is NxN.
  --backend NAME           auto, onnxruntime[:cpu], openvino[:bf16], tensorrt or tensorrt-rtx.
  --no-cuda-graphs         Enqueue plans anew at every step. For debugging.
  --out FILE.png           Picture to write; several get -0, -1, ... before the suffix.
  --json                   Machine-readable result on stdout.
  --version
  --help

Without a default of their own, options have the bundle's.
)";

[[noreturn]] void refuse(const std::string& message, const std::string& field = "") {
  throw tgate::Error(tgate::ErrorKind::request, message, field);
}

template <class T>
T parse_number(const std::string& name, const std::string& text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    refuse(name + " '" + text + "' is not a number that it can be");
  }
  return value;
}

enum Id : int {
  kPrompt = 256, kNegativePrompt, kSteps, kGateStep, kSpInterval, kFiInterval, kWarmUp,
  kGuidanceScale, kGuidanceRescale, kClipSkip, kPromptSyntax, kScheduler, kSet, kSeed, kImage, kStrength,
  kNumImages, kSize, kBackend, kNoCudaGraphs, kOut, kJson, kVersion, kHelpId,
};

constexpr option kOptions[] = {
    {"prompt", required_argument, nullptr, kPrompt},
    {"negative-prompt", required_argument, nullptr, kNegativePrompt},
    {"steps", required_argument, nullptr, kSteps},
    {"gate-step", required_argument, nullptr, kGateStep},
    {"sp-interval", required_argument, nullptr, kSpInterval},
    {"fi-interval", required_argument, nullptr, kFiInterval},
    {"warm-up", required_argument, nullptr, kWarmUp},
    {"guidance-scale", required_argument, nullptr, kGuidanceScale},
    {"guidance-rescale", required_argument, nullptr, kGuidanceRescale},
    {"clip-skip", required_argument, nullptr, kClipSkip},
    {"prompt-syntax", required_argument, nullptr, kPromptSyntax},
    {"scheduler", required_argument, nullptr, kScheduler},
    {"set", required_argument, nullptr, kSet},
    {"seed", required_argument, nullptr, kSeed},
    {"image", required_argument, nullptr, kImage},
    {"strength", required_argument, nullptr, kStrength},
    {"num-images", required_argument, nullptr, kNumImages},
    {"size", required_argument, nullptr, kSize},
    {"backend", required_argument, nullptr, kBackend},
    {"no-cuda-graphs", no_argument, nullptr, kNoCudaGraphs},
    {"out", required_argument, nullptr, kOut},
    {"json", no_argument, nullptr, kJson},
    {"version", no_argument, nullptr, kVersion},
    {"help", no_argument, nullptr, kHelpId},
    {nullptr, 0, nullptr, 0},
};

void parse_size(const std::string& text, tgate::Request& request) {
  const auto cross = text.find_first_of("xX");  // N is NxN
  request.width = parse_number<int>("--size", text.substr(0, cross));
  request.height = cross == std::string::npos
                       ? request.width
                       : parse_number<int>("--size", text.substr(cross + 1));
}

std::uint64_t parse_seed(const std::string& text) {
  std::uint64_t seed{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seed);
  if (error != std::errc() || end != text.data() + text.size()) {
    refuse("seed must be 0 to 2^64 - 1, got " + text);
  }
  return seed;
}

// Finds out before a run and not after it.
void check_writable(const std::filesystem::path& out) {
  if (out.extension() != ".png") refuse("--out " + out.string() + " must end in .png");
  const std::filesystem::path folder = out.has_parent_path() ? out.parent_path() : ".";
  if (!std::filesystem::is_directory(folder)) {
    refuse("--out " + out.string() + ": the folder " + folder.string() + " does not exist");
  }
}

tgate::Scalar parse_value(const std::string& name, const tgate::Parameter& parameter,
                          const std::string& text) {
  const std::string option = "--set " + name;
  switch (parameter.type) {
    case tgate::ParameterType::integer: return parse_number<std::int64_t>(option, text);
    case tgate::ParameterType::number: return parse_number<double>(option, text);
    case tgate::ParameterType::choice: return text;
    case tgate::ParameterType::pair: {
      const auto comma = text.find(',');
      if (comma == std::string::npos) refuse(option + " '" + text + "' is not A,B", name);
      return std::array<int, 2>{parse_number<int>(option, text.substr(0, comma)),
                                parse_number<int>(option, text.substr(comma + 1))};
    }
    default:
      refuse(option + " is a picture: tgate_generate reads none, give it in a program of your own",
             name);
  }
}

}  // namespace

void add_settings(const tgate::Manifest& manifest, const std::vector<std::string>& settings,
                  tgate::Request& request) {
  for (const std::string& setting : settings) {
    const auto equals = setting.find('=');
    if (equals == std::string::npos) {
      refuse("--set " + setting + " has no value: give NAME=VALUE");
    }
    const std::string name = setting.substr(0, equals);
    const tgate::Parameter* parameter = manifest.parameters.find(name);
    if (parameter == nullptr) {
      std::string names;
      for (const auto& [known, entry] : manifest.parameters) {
        names += (names.empty() ? "" : ", ") + known;
      }
      refuse("--set " + name + ": this bundle has " + names, name);
    }
    request.parameters[name] = parse_value(name, *parameter, setting.substr(equals + 1));
  }
}

Arguments parse_arguments(int argc, char** argv) {
  Arguments arguments;
  tgate::Request& request = arguments.request;
  bool has_prompt = false;
  opterr = 0;  // errors are ours to print
  for (int id; (id = getopt_long(argc, argv, "h", kOptions, nullptr)) != -1;) {
    const std::string value = optarg != nullptr ? optarg : "";
    const auto integer = [&](const char* name) { return parse_number<int>(name, value); };
    switch (id) {
      case kPrompt:
        request.prompt = tgate::Texts{value};
        has_prompt = true;
        break;
      case kNegativePrompt: request.negative_prompt = tgate::Texts{value}; break;
      case kSteps: request.num_inference_steps = integer("--steps"); break;
      case kGateStep: request.gate_step = integer("--gate-step"); break;
      case kSpInterval: request.sp_interval = integer("--sp-interval"); break;
      case kFiInterval: request.fi_interval = integer("--fi-interval"); break;
      case kWarmUp: request.warm_up = integer("--warm-up"); break;
      case kGuidanceScale:
        request.guidance_scale = {parse_number<double>("--guidance-scale", value)};
        break;
      case kGuidanceRescale:
        request.guidance_rescale = parse_number<double>("--guidance-rescale", value);
        break;
      case kClipSkip: request.clip_skip = integer("--clip-skip"); break;
      case kPromptSyntax: request.prompt_syntax = value; break;
      case kScheduler: request.scheduler = value; break;
      case kSet: arguments.settings.push_back(value); break;
      case kSeed: request.seed = parse_seed(value); break;
      case kImage:
      case kStrength:
        refuse("tgate_generate begins with noise alone: image-to-image is in the Python runtime, "
               "`tgate-export generate --image`");
      case kNumImages: request.num_images_per_prompt = integer("--num-images"); break;
      case kSize: parse_size(value, request); break;
      case kBackend: arguments.options.backend = value; break;
      case kNoCudaGraphs: arguments.options.cuda_graphs = false; break;
      case kOut: arguments.out = value; break;
      case kJson: arguments.json = true; break;
      case kVersion:
        std::printf("tgate_generate, version %s\n", tgate::version());
        std::exit(0);
      case 'h':
      case kHelpId:
        std::fputs(kHelp, stdout);
        std::exit(0);
      default:
        refuse(std::string("no such option, or one without its value: ") + argv[optind - 1] +
               "; see --help");
    }
  }
  if (argc - optind != 1) refuse("give one BUNDLE; see --help");
  arguments.bundle = argv[optind];
  if (!has_prompt) refuse("missing option '--prompt'; see --help");
  check_writable(arguments.out);
  return arguments;
}
