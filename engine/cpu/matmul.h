// Matrix products of activations with weights. Weights are packed once into panels; a row of the
// product is the same to the last bit whatever the number of rows beside it and of threads, because
// every output is one chain of multiply-adds over the inputs in ascending order. (A BLAS does not
// promise that.) A few rows cost one pass over the weights, shared out to all threads.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "engine/backend/tensor_view.h"
#include "engine/cpu/arena.h"
#include "engine/cpu/kernels.h"
#include "engine/cpu/thread_pool.h"

namespace tidal::cpu {

// A weight matrix [num_outputs, num_inputs] as
// [ceil(num_outputs / kPanelWidth)][num_inputs][kPanelWidth], zero where there is no output.
class PackedMatrix {
 public:
  PackedMatrix() = default;
  PackedMatrix(int32_t num_outputs, int32_t num_inputs, Arena* arena);

  int32_t num_outputs() const { return num_outputs_; }
  int32_t num_inputs() const { return num_inputs_; }
  const float* panel(int64_t index) const { return panels_.data() + index * panel_size(); }

  // Sets outputs first_output ... from a view of [rows, num_inputs].
  void SetOutputs(int32_t first_output, const TensorView& weights, ThreadPool* pool);

  // Sets the weights of one output, [num_inputs].
  void SetOutput(int32_t output, const float* weights);

  // The weights of one output, [num_inputs].
  void CopyOutput(int32_t output, float* weights) const;

 private:
  int64_t panel_size() const { return int64_t{kPanelWidth} * num_inputs_; }

  int32_t num_outputs_ = 0;
  int32_t num_inputs_ = 0;
  absl::Span<float> panels_;
};

// Element `index` of a view, and a run of elements, as float32.
void ConvertToFloat(const TensorView& view, int64_t first_element, int64_t count, float* out);

// Rows of activations, row_stride floats apart.
struct ConstRows {
  const float* first;
  int64_t row_stride;
};
struct Rows {
  float* first;
  int64_t row_stride;
};

enum class Store : uint8_t { kOverwrite, kAccumulate };

// y = x * weights^T + bias, or added to y. An empty bias is none.
void Multiply(const Kernels& kernels, ThreadPool* pool, ConstRows x, int32_t num_rows,
              const PackedMatrix& weights, absl::Span<const float> bias, Store store, Rows y);

}  // namespace tidal::cpu
