// Matrix product on packed panels; see kernels.h. Included only by kernels.inc.h.

// A register tile is up to kTileRows rows by kTileVectors vectors of outputs.
constexpr int kTileVectors = 2;
constexpr int kTileRows = kWidth == 16 ? 12 : 6;
constexpr int kTileWidth = kTileVectors * kWidth;
static_assert(kTileRows <= kMaxTileRows);

// acc[r][v] += sum_k a[r * a_stride + k] * b[k * b_stride + v * kWidth ...], k ascending. Every
// element is one chain of fused multiply-adds, so neither Rows nor the tile's place matters.
template <int Rows>
inline void MultiplyTile(const float* a, int64_t a_stride, const float* b, int64_t b_stride,
                         int depth, Vec (&acc)[Rows][kTileVectors]) {
  for (int k = 0; k < depth; ++k) {
    Vec columns[kTileVectors];
    for (int v = 0; v < kTileVectors; ++v) columns[v] = Load(b + k * b_stride + v * kWidth);
    for (int r = 0; r < Rows; ++r) {
      const Vec value = Broadcast(a[r * a_stride + k]);
      for (int v = 0; v < kTileVectors; ++v) acc[r][v] = Fma(value, columns[v], acc[r][v]);
    }
  }
}

// y[0..count) = tile (+ bias) (+ y).
inline void FinishOutputs(const Vec (&tile)[kTileVectors], int count, const float* bias,
                          bool accumulate, float* y) {
  if (count >= kTileWidth) {
    for (int v = 0; v < kTileVectors; ++v) {
      Vec value = tile[v];
      if (bias != nullptr) value += Load(bias + v * kWidth);
      if (accumulate) value += Load(y + v * kWidth);
      Store(y + v * kWidth, value);
    }
    return;
  }
  float values[kTileWidth];
  for (int v = 0; v < kTileVectors; ++v) Store(values + v * kWidth, tile[v]);
  for (int o = 0; o < count; ++o) {
    float value = values[o];
    if (bias != nullptr) value += bias[o];
    y[o] = accumulate ? value + y[o] : value;
  }
}

// One panel, Rows rows.
template <int Rows>
void MatmulRows(const MatmulArguments& args, const float* x, const float* panel, int first_output,
                float* y) {
  for (int column = 0; column < kPanelWidth; column += kTileWidth) {
    const int output = first_output + column;
    if (output >= args.num_outputs) return;
    Vec acc[Rows][kTileVectors] = {};
    MultiplyTile<Rows>(x, args.x_stride, panel + column, kPanelWidth, args.num_inputs, acc);
    for (int r = 0; r < Rows; ++r) {
      FinishOutputs(acc[r], args.num_outputs - output,
                    args.bias == nullptr ? nullptr : args.bias + output, args.accumulate,
                    y + r * args.y_stride + output);
    }
  }
}

using MatmulRowsFunction = void (*)(const MatmulArguments&, const float*, const float*, int,
                                    float*);

constexpr MatmulRowsFunction kMatmulRows[] = {
    MatmulRows<1>, MatmulRows<2>, MatmulRows<3>, MatmulRows<4>,  MatmulRows<5>,  MatmulRows<6>,
#if TIDAL_SIMD_WIDTH == 16
    MatmulRows<7>, MatmulRows<8>, MatmulRows<9>, MatmulRows<10>, MatmulRows<11>, MatmulRows<12>,
#endif
};

void Matmul(const MatmulArguments& args) {
  const int64_t panel_size = int64_t{kPanelWidth} * args.num_inputs;
  for (int output = 0; output < args.num_outputs; output += kPanelWidth) {
    const float* panel = args.panels + output / kPanelWidth * panel_size;
    for (int row = 0; row < args.num_rows; row += kTileRows) {
      const int rows = args.num_rows - row < kTileRows ? args.num_rows - row : kTileRows;
      kMatmulRows[rows - 1](args, args.x + row * args.x_stride, panel, output,
                            args.y + row * args.y_stride);
    }
  }
}
