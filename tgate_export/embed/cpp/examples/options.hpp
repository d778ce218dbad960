// The options of `tgate_generate`, which are those of `tgate-export generate`.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include <tgate/pipeline.hpp>

struct Arguments {
  std::filesystem::path bundle;
  std::filesystem::path out = "x.png";
  tgate::Options options;
  tgate::Request request;
  std::vector<std::string> settings;  // NAME=VALUE
  bool json = false;
};

// Throws tgate::Error, kind `request`. Prints help or the version, and exits, when asked to.
Arguments parse_arguments(int argc, char** argv);

// Adds NAME=VALUE to a request, by the bundle's table. Throws tgate::Error, kind `request`.
void add_settings(const tgate::Manifest& manifest, const std::vector<std::string>& settings,
                  tgate::Request& request);
