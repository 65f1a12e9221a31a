#define TIDAL_SIMD_WIDTH 8
#define TIDAL_KERNEL_TABLE kAvx2Kernels
#define TIDAL_KERNEL_NAME "avx2"
#include "engine/cpu/kernels.inc.h"
