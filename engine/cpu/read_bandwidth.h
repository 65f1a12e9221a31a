// How fast this machine's memory is read, for benchmarks.
#pragma once

#include "engine/cpu/thread_pool.h"

namespace tidal::cpu {

// Bytes a second: the median of several sums over 512 MiB by all threads of the pool.
double MeasureReadBandwidth(ThreadPool* pool);

}  // namespace tidal::cpu
