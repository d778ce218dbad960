// The options of `tgate_generate`, which are those of `tgate-export generate`.
#pragma once

#include <filesystem>
#include <string>

#include <tgate/pipeline.hpp>

struct Arguments {
  std::filesystem::path bundle;
  std::filesystem::path out = "x.png";
  tgate::Options options;
  tgate::Request request;
  bool json = false;
};

// Throws tgate::Error, kind `request`. Prints help or the version, and exits, when asked to.
Arguments parse_arguments(int argc, char** argv);
