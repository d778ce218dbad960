#include "cpus.hpp"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace tgate {
namespace fs = std::filesystem;
namespace {

std::vector<std::string> words(const fs::path& file) {
  std::ifstream stream(file);
  std::vector<std::string> found;
  for (std::string word; stream >> word && found.size() < 4;) found.push_back(word);
  return found;
}

double number(const std::string& text) {
  const bool digits = !text.empty() && text.size() < 16 &&
                      text.find_first_not_of("0123456789") == std::string::npos;
  return digits ? std::stod(text) : 0;
}

double limit(const std::vector<std::string>& parts) {
  const double period = parts.size() < 2 ? 0 : number(parts[1]);
  return period > 0 ? number(parts[0]) / period : 0;
}

// The folder of a group and all above; in a container only the topmost is there.
std::vector<fs::path> folders(const fs::path& mount, const std::string& group) {
  std::vector<fs::path> found{mount};
  for (const fs::path& part : fs::path(group).relative_path()) found.push_back(found.back() / part);
  return found;
}

}  // namespace

int cpu_quota(const fs::path& groups, const fs::path& mount, int processors) {
  double lowest = processors;
  const auto add = [&](double processors_of_one) {
    if (processors_of_one > 0) lowest = std::min(lowest, processors_of_one);
  };
  std::ifstream listed(groups);
  for (std::string line; std::getline(listed, line);) {
    std::istringstream fields(line);
    std::string id, controllers, group;
    if (!std::getline(fields, id, ':') || !std::getline(fields, controllers, ':')) continue;
    std::getline(fields, group);
    if (controllers.empty()) {
      for (const fs::path& folder : folders(mount, group)) add(limit(words(folder / "cpu.max")));
    } else if (("," + controllers + ",").find(",cpu,") != std::string::npos) {
      for (const std::string& name : {std::string("cpu"), controllers}) {
        for (const fs::path& folder : folders(mount / name, group)) {
          std::vector<std::string> parts = words(folder / "cpu.cfs_quota_us");
          const std::vector<std::string> period = words(folder / "cpu.cfs_period_us");
          parts.insert(parts.end(), period.begin(), period.end());
          add(limit(parts));
        }
      }
    }
  }
  return lowest < processors ? std::max(1, static_cast<int>(lowest)) : 0;
}

int cpu_quota() {
  const auto processors = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  return cpu_quota("/proc/self/cgroup", "/sys/fs/cgroup", processors);
}

}  // namespace tgate
