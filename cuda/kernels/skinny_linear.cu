#include "cuda/kernels/skinny_linear.h"

#include <algorithm>

#include "cuda/kernels/shared_memory.h"
#include "cuda/kernels/skinny_linear_kernel.cuh"

namespace tidal::cuda {
namespace {

using skinny::Cut;
using skinny::MakeCut;
using skinny::SharedBytes;
using skinny::SkinnyLinearKernel;

// The biases of a pair of outputs; `output` is even.
__device__ float2 LoadBiasPair(const float* bias, int32_t output) {
  return bias == nullptr ? float2{} : __ldg(reinterpret_cast<const float2*>(bias + output));
}

template <typename T>
struct AttentionInputProduct : AttentionInput<T> {
  using Element = T;
  static constexpr bool kNormalizes = true;
  static constexpr bool kHoldsNextBack = true;  // sparse attention reads before it waits

  struct Prefetched {
    float2 bias;
    float inverse_frequency;  // 0: is not rotated
    int32_t position;
    int32_t cache_row;  // -1: writes no cache
  };

  int32_t num_query_heads;

  __device__ int32_t InputRow(int32_t row) const { return row; }

  __device__ int32_t head_dim() const { return this->cache.head_dim; }

  __device__ Prefetched Prefetch(int32_t output, int32_t row) const {
    Prefetched prefetched = {LoadBiasPair(this->bias, output), 0.0f, this->step.positions[row], -1};
    const int32_t head = output / head_dim();
    if (head < num_query_heads + this->cache.num_kv_heads) {
      prefetched.inverse_frequency = __ldg(this->inverse_frequencies + output % head_dim() / 2);
    }
    if (head >= num_query_heads && row < this->step.counts->num_rows) {
      prefetched.cache_row = this->step.cache_rows[row];
    }
    return prefetched;
  }

  __device__ void Store(const Prefetched& prefetched, int32_t output, int32_t row, float first,
                        float second) const {
    first += prefetched.bias.x;
    second += prefetched.bias.y;
    const int32_t head = output / head_dim();
    const int32_t element = output % head_dim();
    const int32_t first_value_head = num_query_heads + this->cache.num_kv_heads;
    if (head >= first_value_head) {
      if (prefetched.cache_row < 0) return;
      T* value = this->cache.base + this->cache.value_offset() +
                 this->cache.key_offset(prefetched.cache_row, head - first_value_head) + element;
      value[0] = static_cast<T>(first);
      value[1] = static_cast<T>(second);
      return;
    }
    T* target = nullptr;
    if (head < num_query_heads) {
      target = this->query + (int64_t{row} * num_query_heads + head) * head_dim();
    } else if (prefetched.cache_row >= 0) {
      target =
          this->cache.base + this->cache.key_offset(prefetched.cache_row, head - num_query_heads);
    } else {
      return;
    }
    float sine;
    float cosine;
    sincosf(static_cast<float>(prefetched.position) * prefetched.inverse_frequency, &sine, &cosine);
    target += element / 2;
    target[0] = static_cast<T>(first * cosine - second * sine);
    target[head_dim() / 2] = static_cast<T>(second * cosine + first * sine);
  }
};

template <typename T>
struct ResidualLinearProduct : ResidualProduct<T> {
  using Element = T;
  static constexpr bool kNormalizes = false;
  static constexpr bool kHoldsNextBack = false;

  struct Prefetched {
    float2 sum;  // of the residual and the bias
  };

  int32_t hidden_size;

  __device__ float2* target(int32_t output, int32_t row) const {
    return reinterpret_cast<float2*>(this->hidden + int64_t{row} * hidden_size + output);
  }

  __device__ Prefetched Prefetch(int32_t output, int32_t row) const {
    const float2 residual = __ldcg(target(output, row));
    const float2 bias = LoadBiasPair(this->bias, output);
    return {{residual.x + bias.x, residual.y + bias.y}};
  }

  __device__ void Store(const Prefetched& prefetched, int32_t output, int32_t row, float first,
                        float second) const {
    *target(output, row) = {prefetched.sum.x + first, prefetched.sum.y + second};
  }
};

template <typename T>
struct GateUpProduct : GateUp<T> {
  using Element = T;
  static constexpr bool kNormalizes = true;
  static constexpr bool kHoldsNextBack = false;

  struct Prefetched {
    float2 bias;
  };

  int32_t intermediate_size;

  __device__ int32_t InputRow(int32_t row) const { return row; }

  __device__ Prefetched Prefetch(int32_t output, int32_t /*row*/) const {
    return {LoadBiasPair(this->bias, output)};
  }

  __device__ void Store(const Prefetched& prefetched, int32_t output, int32_t row, float first,
                        float second) const {
    const float gate = first + prefetched.bias.x;
    const float up = second + prefetched.bias.y;
    const float silu = gate / (1.0f + __expf(-gate));
    this->output[int64_t{row} * intermediate_size + output / 2] = static_cast<T>(silu * up);
  }
};

template <typename T>
struct LmHeadProduct : LmHead<T> {
  using Element = T;
  static constexpr bool kNormalizes = true;
  static constexpr bool kHoldsNextBack = false;

  struct Prefetched {
    bool samples;
  };

  int32_t vocab_size;

  __device__ bool Samples(int32_t row) const { return row < this->step.counts->num_samples; }

  __device__ int32_t InputRow(int32_t row) const {
    if (!Samples(row)) return -1;
    const DeviceChunk& chunk = this->step.chunks[this->step.sampling_chunks[row]];
    return chunk.first_row + chunk.num_tokens - 1;
  }

  __device__ Prefetched Prefetch(int32_t /*output*/, int32_t row) const { return {Samples(row)}; }

  __device__ void Store(const Prefetched& prefetched, int32_t output, int32_t row, float first,
                        float second) const {
    if (!prefetched.samples) return;
    float* target = this->logits + int64_t{row} * vocab_size + output;
    target[0] = first;
    if (output + 1 < vocab_size) target[1] = second;
  }
};

// The least shared memory that two blocks of a multiprocessor must have each to be worth it.
constexpr int32_t kMinSharedBytes = 80 * 1024;

bool SupportsProduct(int32_t num_rows, int32_t inputs, int32_t outputs) {
  return num_rows >= 1 && num_rows <= kMaxSkinnyRows && inputs > 0 &&
         inputs % skinny::kLaneElements == 0 && outputs > 0;
}

bool SupportsNormalized(int32_t num_rows, int32_t inputs, int32_t outputs) {
  return SupportsProduct(num_rows, inputs, outputs) && inputs <= kMaxNormalizedInputs;
}

template <typename Product>
cudaError_t LaunchProduct(const SkinnyLaunch& launch, const Product& product, int32_t inputs,
                          int32_t outputs, float rms_norm_eps) {
  Cut cut = MakeCut(launch.num_rows, inputs, outputs, launch.device.block_shared_bytes);
  cut.rms_norm_eps = rms_norm_eps;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(std::min(launch.device.num_blocks, cut.num_tiles));
  config.blockDim = dim3(skinny::kNumThreads);
  config.dynamicSmemBytes = SharedBytes(cut);
  config.stream = launch.stream;
  config.attrs = &attribute;
  config.numAttrs = launch.dependent ? 1 : 0;
  const auto kernel = cut.split == 8   ? SkinnyLinearKernel<8, Product>
                      : cut.split == 4 ? SkinnyLinearKernel<4, Product>
                                       : SkinnyLinearKernel<2, Product>;
  return cudaLaunchKernelEx(&config, kernel, product, cut, launch.counters);
}

template <typename Product>
cudaError_t AllowSharedBytesOfProduct(int32_t shared_bytes) {
  const auto num_bytes = static_cast<size_t>(shared_bytes);
  for (cudaError_t error : {AllowSharedBytes(SkinnyLinearKernel<2, Product>, num_bytes),
                            AllowSharedBytes(SkinnyLinearKernel<4, Product>, num_bytes),
                            AllowSharedBytes(SkinnyLinearKernel<8, Product>, num_bytes)}) {
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <typename T>
cudaError_t AllowSharedBytesOfProducts(int32_t shared_bytes) {
  for (cudaError_t error : {AllowSharedBytesOfProduct<AttentionInputProduct<T>>(shared_bytes),
                            AllowSharedBytesOfProduct<ResidualLinearProduct<T>>(shared_bytes),
                            AllowSharedBytesOfProduct<GateUpProduct<T>>(shared_bytes),
                            AllowSharedBytesOfProduct<LmHeadProduct<T>>(shared_bytes)}) {
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <typename T>
cudaError_t LaunchResidual(const SkinnyLaunch& launch, const ModelDims& dims, int32_t inputs,
                           const ResidualProduct<T>& arguments) {
  const ResidualLinearProduct<T> product = {arguments, dims.hidden_size};
  return LaunchProduct(launch, product, inputs, dims.hidden_size, dims.rms_norm_eps);
}

}  // namespace

cudaError_t InitSkinnyLinear(SkinnyLinearDevice* device) {
  int ordinal = 0;
  if (cudaError_t error = cudaGetDevice(&ordinal); error != cudaSuccess) return error;
  const auto attribute = [ordinal](cudaDeviceAttr name, int* value) {
    return cudaDeviceGetAttribute(value, name, ordinal);
  };
  int num_multiprocessors = 0;
  int multiprocessor_bytes = 0;
  int reserved_bytes = 0;
  int max_block_bytes = 0;
  for (cudaError_t error :
       {attribute(cudaDevAttrMultiProcessorCount, &num_multiprocessors),
        attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, &multiprocessor_bytes),
        attribute(cudaDevAttrReservedSharedMemoryPerBlock, &reserved_bytes),
        attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, &max_block_bytes)}) {
    if (error != cudaSuccess) return error;
  }
  const int32_t shared_bytes =
      multiprocessor_bytes / skinny::kBlocksPerMultiprocessor - reserved_bytes;
  device->num_blocks = num_multiprocessors;
  device->block_shared_bytes = shared_bytes >= kMinSharedBytes ? shared_bytes : max_block_bytes;
  if (cudaError_t error = AllowSharedBytesOfProducts<__nv_bfloat16>(device->block_shared_bytes);
      error != cudaSuccess) {
    return error;
  }
  return AllowSharedBytesOfProducts<__half>(device->block_shared_bytes);
}

bool SupportsAttentionInput(const ModelDims& dims, int32_t num_rows) {
  return SupportsNormalized(num_rows, dims.hidden_size, dims.qkv_size()) && dims.head_dim % 2 == 0;
}

bool SupportsOutputProjection(const ModelDims& dims, int32_t num_rows) {
  return SupportsProduct(num_rows, dims.query_size(), dims.hidden_size) &&
         dims.hidden_size % 2 == 0;
}

bool SupportsGateUp(const ModelDims& dims, int32_t num_rows) {
  return SupportsNormalized(num_rows, dims.hidden_size, 2 * dims.intermediate_size);
}

bool SupportsDown(const ModelDims& dims, int32_t num_rows) {
  return SupportsProduct(num_rows, dims.intermediate_size, dims.hidden_size) &&
         dims.hidden_size % 2 == 0;
}

bool SupportsLmHead(const ModelDims& dims, int32_t num_samples) {
  return SupportsNormalized(num_samples, dims.hidden_size, dims.vocab_size);
}

template <typename T>
cudaError_t LaunchAttentionInput(const SkinnyLaunch& launch, const ModelDims& dims,
                                 const AttentionInput<T>& arguments) {
  if (!SupportsAttentionInput(dims, launch.num_rows)) return cudaErrorInvalidValue;
  const AttentionInputProduct<T> product = {arguments, dims.num_query_heads};
  return LaunchProduct(launch, product, dims.hidden_size, dims.qkv_size(), dims.rms_norm_eps);
}

template <typename T>
cudaError_t LaunchOutputProjection(const SkinnyLaunch& launch, const ModelDims& dims,
                                   const ResidualProduct<T>& arguments) {
  if (!SupportsOutputProjection(dims, launch.num_rows)) return cudaErrorInvalidValue;
  return LaunchResidual(launch, dims, dims.query_size(), arguments);
}

template <typename T>
cudaError_t LaunchDown(const SkinnyLaunch& launch, const ModelDims& dims,
                       const ResidualProduct<T>& arguments) {
  if (!SupportsDown(dims, launch.num_rows)) return cudaErrorInvalidValue;
  return LaunchResidual(launch, dims, dims.intermediate_size, arguments);
}

template <typename T>
cudaError_t LaunchGateUp(const SkinnyLaunch& launch, const ModelDims& dims,
                         const GateUp<T>& arguments) {
  if (!SupportsGateUp(dims, launch.num_rows)) return cudaErrorInvalidValue;
  const GateUpProduct<T> product = {arguments, dims.intermediate_size};
  return LaunchProduct(launch, product, dims.hidden_size, 2 * dims.intermediate_size,
                       dims.rms_norm_eps);
}

template <typename T>
cudaError_t LaunchLmHead(const SkinnyLaunch& launch, const ModelDims& dims,
                         const LmHead<T>& arguments) {
  if (!SupportsLmHead(dims, launch.num_rows)) return cudaErrorInvalidValue;
  const LmHeadProduct<T> product = {arguments, dims.vocab_size};
  return LaunchProduct(launch, product, dims.hidden_size, dims.vocab_size, dims.rms_norm_eps);
}

#define TIDAL_INSTANTIATE_SKINNY_LINEAR(T)                                                       \
  template cudaError_t LaunchAttentionInput<T>(const SkinnyLaunch&, const ModelDims&,            \
                                               const AttentionInput<T>&);                        \
  template cudaError_t LaunchOutputProjection<T>(const SkinnyLaunch&, const ModelDims&,          \
                                                 const ResidualProduct<T>&);                     \
  template cudaError_t LaunchDown<T>(const SkinnyLaunch&, const ModelDims&,                      \
                                     const ResidualProduct<T>&);                                 \
  template cudaError_t LaunchGateUp<T>(const SkinnyLaunch&, const ModelDims&, const GateUp<T>&); \
  template cudaError_t LaunchLmHead<T>(const SkinnyLaunch&, const ModelDims&, const LmHead<T>&)
TIDAL_INSTANTIATE_SKINNY_LINEAR(__nv_bfloat16);
TIDAL_INSTANTIATE_SKINNY_LINEAR(__half);
#undef TIDAL_INSTANTIATE_SKINNY_LINEAR

}  // namespace tidal::cuda
