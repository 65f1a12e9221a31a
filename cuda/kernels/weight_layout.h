// Brings weights from a checkpoint's order and type into the order of skinny_linear.h, and makes
// random ones. At start-up only.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "engine/backend/tensor_view.h"

namespace tidal::cuda {

// Where row r of a source matrix goes: without pairs, to offset + r * stride. With pairs, heads
// stay where they are (offset + the head's first row) and their rows are interleaved: row i of a
// head's first half goes to 2 i, row i of its second half to 2 i + 1.
struct RowMap {
  int32_t offset = 0;
  int32_t stride = 1;
  int32_t paired_head_dim = 0;  // 0 = no pairs

  __host__ __device__ int32_t operator()(int32_t row) const {
    if (paired_head_dim == 0) return offset + row * stride;
    const int32_t half = paired_head_dim / 2;
    const int32_t element = row % paired_head_dim;
    return offset + row - element + (element < half ? 2 * element : 2 * (element - half) + 1);
  }
};

// Rows [first_row, first_row + num_rows) of a source matrix, which lie dense at `source` in device
// memory, converted to Target (float, __nv_bfloat16 or __half; to the nearest) and written to their
// rows of `target`, [..][num_columns]. `source` is aligned to its element.
template <typename Target>
cudaError_t LaunchConvertRows(const void* source, DType source_type, int32_t first_row,
                              int32_t num_rows, int32_t num_columns, const RowMap& map,
                              Target* target, cudaStream_t stream);

// Uniform numbers of mean 0 and the given standard deviation; element i is a function of the seed
// and i alone.
template <typename Target>
cudaError_t LaunchFillUniform(uint64_t seed, float deviation, int64_t size, Target* target,
                              cudaStream_t stream);

// Every element becomes `value`.
cudaError_t LaunchFill(float value, int64_t size, float* target, cudaStream_t stream);

}  // namespace tidal::cuda
