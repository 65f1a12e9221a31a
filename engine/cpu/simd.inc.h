// A vector of TIDAL_SIMD_WIDTH floats in the instruction set this file is compiled for. Included
// only by the kernels_*.cc files, inside their namespace. No standard library code may be
// instantiated here: the linker would share it with code for lesser processors.

constexpr int kWidth = TIDAL_SIMD_WIDTH;

typedef float Vec __attribute__((vector_size(4 * TIDAL_SIMD_WIDTH)));
typedef int32_t IntVec __attribute__((vector_size(4 * TIDAL_SIMD_WIDTH)));
// The same in memory, at any address.
typedef float MemoryVec __attribute__((vector_size(4 * TIDAL_SIMD_WIDTH), aligned(4), may_alias));
typedef int32_t MemoryIntVec
    __attribute__((vector_size(4 * TIDAL_SIMD_WIDTH), aligned(4), may_alias));

inline Vec Load(const float* p) { return *reinterpret_cast<const MemoryVec*>(p); }
inline void Store(float* p, Vec v) { *reinterpret_cast<MemoryVec*>(p) = v; }
inline IntVec LoadInt(const int32_t* p) { return *reinterpret_cast<const MemoryIntVec*>(p); }
inline void StoreInt(int32_t* p, IntVec v) { *reinterpret_cast<MemoryIntVec*>(p) = v; }

inline Vec Broadcast(float x) { return x - Vec{}; }
inline Vec Max(Vec a, Vec b) { return a > b ? a : b; }

// a * b + c, one rounding where the processor has it.
inline Vec Fma(Vec a, Vec b, Vec c) {
#if TIDAL_SIMD_WIDTH == 16
  return reinterpret_cast<Vec>(_mm512_fmadd_ps(a, b, c));
#elif TIDAL_SIMD_WIDTH == 8
  return reinterpret_cast<Vec>(_mm256_fmadd_ps(a, b, c));
#else
  return a * b + c;
#endif
}

// exp, relative error below 1.2e-7; 0 below -87, and arguments above 88 count as 88. The reduction
// by ln 2 in two parts and the polynomial follow Cephes (Moshier, expf).
inline Vec Exp(Vec x) {
  const Vec clamped = Max(x > 88.0f ? Broadcast(88.0f) : x, Broadcast(-87.0f));
  // Adding 1.5 * 2^23 leaves the rounded quotient in the low bits of the mantissa.
  const Vec shifted = Fma(clamped, Broadcast(1.44269504f), Broadcast(12582912.0f));
  const Vec quotient = shifted - 12582912.0f;
  Vec r = Fma(quotient, Broadcast(-0.693359375f), clamped);
  r = Fma(quotient, Broadcast(2.12194440e-4f), r);
  Vec p = Fma(r, Broadcast(1.9875691500e-4f), Broadcast(1.3981999507e-3f));
  p = Fma(p, r, Broadcast(8.3334519073e-3f));
  p = Fma(p, r, Broadcast(4.1665795894e-2f));
  p = Fma(p, r, Broadcast(1.6666665459e-1f));
  p = Fma(p, r, Broadcast(5.0000001201e-1f));
  p = Fma(p, r * r, r) + 1.0f;
  const IntVec exponent = (reinterpret_cast<IntVec>(shifted) + 127) << 23;
  const Vec result = p * reinterpret_cast<Vec>(exponent);
  return x < -87.0f ? Vec{} : result;
}

#if TIDAL_SIMD_WIDTH == 16
#define TIDAL_EVEN_LANES 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define TIDAL_ODD_LANES 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#elif TIDAL_SIMD_WIDTH == 8
#define TIDAL_EVEN_LANES 0, 2, 4, 6, 8, 10, 12, 14
#define TIDAL_ODD_LANES 1, 3, 5, 7, 9, 11, 13, 15
#else
#define TIDAL_EVEN_LANES 0, 2, 4, 6
#define TIDAL_ODD_LANES 1, 3, 5, 7
#endif

// Sums of neighbouring lanes: a's in the lower half, b's in the upper half.
inline Vec AddNeighbours(Vec a, Vec b) {
  return __builtin_shufflevector(a, b, TIDAL_EVEN_LANES) +
         __builtin_shufflevector(a, b, TIDAL_ODD_LANES);
}

// Lane i of the result is the sum of v[i]'s lanes.
inline Vec SumEach(Vec (&v)[kWidth]) {
  for (int count = kWidth; count > 1; count /= 2) {
    for (int i = 0; i < count / 2; ++i) v[i] = AddNeighbours(v[2 * i], v[2 * i + 1]);
  }
  return v[0];
}

inline float Sum(Vec v) {
  for (int count = kWidth; count > 1; count /= 2) v = AddNeighbours(v, v);
  return v[0];
}

inline float MaxLane(Vec v) {
  float max = v[0];
  for (int i = 1; i < kWidth; ++i) max = v[i] > max ? v[i] : max;
  return max;
}
