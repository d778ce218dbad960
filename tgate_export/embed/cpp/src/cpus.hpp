// How many processors this process may use: fewer than there are, in most containers.
#pragma once

#include <filesystem>

namespace tgate {

// The processors of a CPU quota, rounded down to whole ones and 1 at least; 0 without one, or with
// one of as many as there are. Threads beyond it only make the kernel stop all of them for the rest
// of every period. It is that of control groups, of version 2 and 1: of this process's group or of
// one above it.
//
// groups: /proc/self/cgroup. mount: /sys/fs/cgroup. processors: how many there are.
int cpu_quota(const std::filesystem::path& groups, const std::filesystem::path& mount,
              int processors);

// The same of this process.
int cpu_quota();

}  // namespace tgate
