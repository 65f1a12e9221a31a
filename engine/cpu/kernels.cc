#include "engine/cpu/kernels.h"

#include <cstring>
#include <initializer_list>

namespace tidal::cpu {

extern const Kernels kGenericKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;

const Kernels* FindKernels(const char* instruction_set) {
  __builtin_cpu_init();
  if (std::strcmp(instruction_set, "avx512") == 0) {
    const bool supported = __builtin_cpu_supports("avx512f") &&
                           __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return supported ? &kAvx512Kernels : nullptr;
  }
  if (std::strcmp(instruction_set, "avx2") == 0) {
    const bool supported = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return supported ? &kAvx2Kernels : nullptr;
  }
  return std::strcmp(instruction_set, "generic") == 0 ? &kGenericKernels : nullptr;
}

const Kernels& BestKernels() {
  for (const char* name : {"avx512", "avx2"}) {
    if (const Kernels* kernels = FindKernels(name)) return *kernels;
  }
  return kGenericKernels;
}

}  // namespace tidal::cpu
