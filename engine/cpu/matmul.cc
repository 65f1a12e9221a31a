#include "engine/cpu/matmul.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace tidal::cpu {
namespace {

float BFloat16ToFloat(uint16_t bits) {
  const uint32_t wide = uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

// IEEE 754 half precision. Shifted into place the exponent is 112 too small; the multiplication
// mends that, for subnormal numbers as well.
float Float16ToFloat(uint16_t bits) {
  const uint32_t magnitude = uint32_t{bits & 0x7fffu} << 13;
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16;
  float value;
  std::memcpy(&value, &magnitude, sizeof(value));
  value *= 0x1p112f;
  uint32_t wide;
  std::memcpy(&wide, &value, sizeof(wide));
  if ((bits & 0x7c00u) == 0x7c00u) wide = 0x7f800000u | magnitude;  // infinity and NaN
  wide |= sign;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

template <float (*kConvert)(uint16_t)>
void ConvertHalves(const std::byte* source, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    uint16_t bits;
    std::memcpy(&bits, source + 2 * i, sizeof(bits));
    out[i] = kConvert(bits);
  }
}

int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

void ConvertToFloat(const TensorView& view, int64_t first_element, int64_t count, float* out) {
  const std::byte* source = static_cast<const std::byte*>(view.bytes) +
                            static_cast<size_t>(first_element) * SizeOf(view.dtype);
  switch (view.dtype) {
    case DType::kFloat32:
      std::memcpy(out, source, static_cast<size_t>(count) * sizeof(float));
      return;
    case DType::kFloat16:
      ConvertHalves<Float16ToFloat>(source, count, out);
      return;
    case DType::kBFloat16:
      ConvertHalves<BFloat16ToFloat>(source, count, out);
      return;
  }
}

PackedMatrix::PackedMatrix(int32_t num_outputs, int32_t num_inputs, Arena* arena)
    : num_outputs_(num_outputs), num_inputs_(num_inputs) {
  panels_ = arena->Take<float>(CeilDivide(num_outputs, kPanelWidth) * panel_size());
}

void PackedMatrix::SetOutput(int32_t output, const float* weights) {
  float* column = panels_.data() + output / kPanelWidth * panel_size() + output % kPanelWidth;
  for (int64_t i = 0; i < num_inputs_; ++i) column[i * kPanelWidth] = weights[i];
}

void PackedMatrix::CopyOutput(int32_t output, float* weights) const {
  const float* column = panel(output / kPanelWidth) + output % kPanelWidth;
  for (int64_t i = 0; i < num_inputs_; ++i) weights[i] = column[i * kPanelWidth];
}

void PackedMatrix::SetOutputs(int32_t first_output, const TensorView& weights, ThreadPool* pool) {
  const int32_t rows = static_cast<int32_t>(weights.rows);
  pool->ParallelFor(static_cast<int>(CeilDivide(rows, kPanelWidth)), [&](int task, int) {
    std::vector<float> row(static_cast<size_t>(num_inputs_));
    const int32_t end = std::min(rows, (task + 1) * kPanelWidth);
    for (int32_t r = task * kPanelWidth; r < end; ++r) {
      ConvertToFloat(weights, int64_t{r} * num_inputs_, num_inputs_, row.data());
      SetOutput(first_output + r, row.data());
    }
  });
}

void Multiply(const Kernels& kernels, ThreadPool* pool, ConstRows x, int32_t num_rows,
              const PackedMatrix& weights, absl::Span<const float> bias, Store store, Rows y) {
  // A task is a part of the weights that fits a core's cache, times some rows.
  constexpr int64_t kTaskFloats = 32 * 1024;
  constexpr int32_t kTaskRows = 8 * kMaxTileRows;
  const int64_t num_panels = CeilDivide(weights.num_outputs(), kPanelWidth);
  const int64_t panel_floats = int64_t{kPanelWidth} * weights.num_inputs();
  const int64_t task_panels = std::clamp<int64_t>(kTaskFloats / panel_floats, 1, num_panels);
  const int64_t panel_tasks = CeilDivide(num_panels, task_panels);
  const int64_t row_tasks = CeilDivide(num_rows, kTaskRows);
  pool->ParallelFor(static_cast<int>(panel_tasks * row_tasks), [&](int task, int) {
    const int64_t panel = task % panel_tasks * task_panels;
    const int32_t output = static_cast<int32_t>(panel * kPanelWidth);
    const int32_t outputs =
        std::min(static_cast<int32_t>(task_panels * kPanelWidth), weights.num_outputs() - output);
    const int32_t row = static_cast<int32_t>(task / panel_tasks) * kTaskRows;
    kernels.matmul({
        .x = x.first + row * x.row_stride,
        .x_stride = x.row_stride,
        .num_rows = std::min(kTaskRows, num_rows - row),
        .num_inputs = weights.num_inputs(),
        .panels = weights.panel(panel),
        .num_outputs = outputs,
        .bias = bias.empty() ? nullptr : bias.data() + output,
        .accumulate = store == Store::kAccumulate,
        .y = y.first + row * y.row_stride + output,
        .y_stride = y.row_stride,
    });
  });
}

}  // namespace tidal::cpu
