// The kernels, in the instruction set and namespace of the including file (TIDAL_SIMD_WIDTH,
// TIDAL_KERNEL_TABLE, TIDAL_KERNEL_NAME). Everything but the table has internal linkage.

#include <immintrin.h>

#include <cstdint>

#include "engine/cpu/kernels.h"

namespace tidal::cpu {
namespace {

#include "engine/cpu/simd.inc.h"

#include "engine/cpu/kernels_elementwise.inc.h"

#include "engine/cpu/kernels_matmul.inc.h"

#include "engine/cpu/kernels_attention.inc.h"

}  // namespace

extern const Kernels TIDAL_KERNEL_TABLE;
const Kernels TIDAL_KERNEL_TABLE = {
    .instruction_set = TIDAL_KERNEL_NAME,
    .matmul = Matmul,
    .rms_norm = RmsNorm,
    .silu_multiply = SiluMultiply,
    .sum_exp = SumExp,
    .pool_probabilities = PoolProbabilities,
    .transpose_keys = TransposeKeys,
    .prefill_tile = PrefillTile,
    .decode_run = DecodeRun,
    .score_blocks = ScoreBlocks,
    .bound_keys = BoundKeys,
    .max_into = MaxInto,
    .to_ordered_keys = ToOrderedKeys,
    .count_at_least = CountAtLeast,
};

}  // namespace tidal::cpu
