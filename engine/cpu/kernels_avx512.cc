#define TIDAL_SIMD_WIDTH 16
#define TIDAL_KERNEL_TABLE kAvx512Kernels
#define TIDAL_KERNEL_NAME "avx512"
#include "engine/cpu/kernels.inc.h"
