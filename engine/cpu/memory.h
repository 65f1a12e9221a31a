// How much memory this process may still take.
#pragma once

#include <cstdint>

namespace tidal::cpu {

// The least of the system's MemAvailable and what the process's control groups (v2 and v1) have
// left; reclaimable page cache of a group counts as free.
int64_t AvailableMemoryBytes();

}  // namespace tidal::cpu
