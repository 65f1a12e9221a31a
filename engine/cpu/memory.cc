#include "engine/cpu/memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <string>

namespace tidal::cpu {
namespace {

constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();

// A file that holds one number; nothing where it is absent or says "max".
std::optional<int64_t> ReadNumber(const std::string& path) {
  std::ifstream file(path);
  int64_t value = 0;
  if (file >> value) return value;
  return std::nullopt;
}

// The number after `key` in a file of lines "key number" or "key: number kB".
std::optional<int64_t> ReadKey(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string name;
    int64_t value = 0;
    if (words >> name >> value && name == key) return value;
  }
  return std::nullopt;
}

struct GroupFiles {
  const char* limit;
  const char* usage;
  const char* reclaimable_key;  // in memory.stat
};

constexpr GroupFiles kGroupV2 = {"memory.max", "memory.current", "inactive_file"};
constexpr GroupFiles kGroupV1 = {"memory.limit_in_bytes", "memory.usage_in_bytes",
                                 "total_inactive_file"};

// What the group in `directory` has left.
int64_t GroupHeadroomBytes(const std::string& directory, const GroupFiles& files) {
  const std::optional<int64_t> limit = ReadNumber(directory + "/" + files.limit);
  const std::optional<int64_t> usage = ReadNumber(directory + "/" + files.usage);
  if (!limit || !usage) return kUnlimited;
  const int64_t reclaimable =
      ReadKey(directory + "/memory.stat", files.reclaimable_key).value_or(0);
  return std::max<int64_t>(*limit - std::max<int64_t>(*usage - reclaimable, 0), 0);
}

// The least headroom of a group and its ancestors. In a container the path that /proc names is
// often not below the mount; the mount's root is then the container's own group.
int64_t LeastHeadroomBytes(const std::string& mount, std::string path, const GroupFiles& files) {
  int64_t headroom = GroupHeadroomBytes(mount, files);
  while (path.size() > 1) {
    headroom = std::min(headroom, GroupHeadroomBytes(mount + path, files));
    path.resize(path.rfind('/'));
  }
  return headroom;
}

int64_t ControlGroupHeadroomBytes() {
  int64_t headroom = kUnlimited;
  std::ifstream file("/proc/self/cgroup");
  std::string line;
  while (std::getline(file, line)) {  // id:controllers:path
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (path.empty() || path[0] != '/') continue;
    if (controllers.empty()) {
      headroom = std::min(headroom, LeastHeadroomBytes("/sys/fs/cgroup", path, kGroupV2));
    } else if (("," + controllers + ",").find(",memory,") != std::string::npos) {
      headroom = std::min(headroom, LeastHeadroomBytes("/sys/fs/cgroup/memory", path, kGroupV1));
    }
  }
  return headroom;
}

}  // namespace

int64_t AvailableMemoryBytes() {
  const std::optional<int64_t> system_kib = ReadKey("/proc/meminfo", "MemAvailable:");
  const int64_t system_bytes = system_kib ? *system_kib * 1024 : kUnlimited;
  return std::min(system_bytes, ControlGroupHeadroomBytes());
}

}  // namespace tidal::cpu
