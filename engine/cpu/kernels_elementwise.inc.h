// Norm, activation, softmax pieces and the scans of the selection; see kernels.h. Included only by
// kernels.inc.h.

void RmsNorm(const float* x, const float* weight, int size, float eps, float* y) {
  Vec sums = {};
  int i = 0;
  for (; i + kWidth <= size; i += kWidth) {
    const Vec v = Load(x + i);
    sums = Fma(v, v, sums);
  }
  float sum = Sum(sums);
  for (; i < size; ++i) sum += x[i] * x[i];
  const float scale = 1.0f / __builtin_sqrtf(sum / static_cast<float>(size) + eps);
  for (i = 0; i < size; ++i) y[i] = x[i] * scale * weight[i];
}

inline Vec Silu(Vec x) { return x / (1.0f + Exp(-x)); }

void SiluMultiply(float* gate, const float* up, int size) {
  int i = 0;
  for (; i + kWidth <= size; i += kWidth) Store(gate + i, Silu(Load(gate + i)) * Load(up + i));
  for (; i < size; ++i) gate[i] = Silu(Broadcast(gate[i]))[0] * up[i];
}

float SumExp(const float* x, int64_t size, float max) {
  Vec sums = {};
  int64_t i = 0;
  for (; i + kWidth <= size; i += kWidth) sums += Exp(Load(x + i) - max);
  float sum = Sum(sums);
  for (; i < size; ++i) sum += Exp(Broadcast(x[i] - max))[0];
  return sum;
}

void PoolProbabilities(const float* x, int64_t size, float max, float factor, bool accumulate,
                       float* pooled) {
  const Vec base_factor = accumulate ? Broadcast(1.0f) : Vec{};
  int64_t i = 0;
  for (; i + kWidth <= size; i += kWidth) {
    const Vec base = accumulate ? Load(pooled + i) : base_factor;
    Store(pooled + i, Fma(Exp(Load(x + i) - max), Broadcast(factor), base));
  }
  for (; i < size; ++i) {
    const Vec base = Broadcast(accumulate ? pooled[i] : 0.0f);
    pooled[i] = Fma(Exp(Broadcast(x[i] - max)), Broadcast(factor), base)[0];
  }
}

// Negative floats order backwards as integers: flip all but their sign.
inline IntVec OrderedKeys(Vec score) {
  const IntVec bits = reinterpret_cast<IntVec>(score + 0.0f);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

void ToOrderedKeys(float* scores, int64_t size) {
  int64_t i = 0;
  for (; i + kWidth <= size; i += kWidth) {
    Store(scores + i, reinterpret_cast<Vec>(OrderedKeys(Load(scores + i))));
  }
  for (; i < size; ++i) {
    const int32_t key = OrderedKeys(Broadcast(scores[i]))[0];
    __builtin_memcpy(scores + i, &key, sizeof(key));
  }
}

int64_t CountAtLeast(const int32_t* keys, int64_t size, int32_t threshold) {
  int64_t count = 0;
  int64_t i = 0;
  // A lane counts at most 2^20 keys at a time, so 32 bits hold its sum.
  while (i + kWidth <= size) {
    const int64_t end = size - i > (int64_t{kWidth} << 20) ? i + (int64_t{kWidth} << 20) : size;
    IntVec counts = {};
    for (; i + kWidth <= end; i += kWidth) counts -= LoadInt(keys + i) >= threshold;
    for (int lane = 0; lane < kWidth; ++lane) count += counts[lane];
  }
  for (; i < size; ++i) count += keys[i] >= threshold ? 1 : 0;
  return count;
}

void MaxInto(const float* x, int64_t size, float* y) {
  int64_t i = 0;
  for (; i + kWidth <= size; i += kWidth) Store(y + i, Max(Load(x + i), Load(y + i)));
  for (; i < size; ++i) y[i] = x[i] > y[i] ? x[i] : y[i];
}
