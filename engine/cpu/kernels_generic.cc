#define TIDAL_SIMD_WIDTH 4
#define TIDAL_KERNEL_TABLE kGenericKernels
#define TIDAL_KERNEL_NAME "generic"
#include "engine/cpu/kernels.inc.h"
