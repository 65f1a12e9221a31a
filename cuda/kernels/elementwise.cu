#include "cuda/kernels/elementwise.h"

#include "cuda/kernels/ptx.cuh"
#include "cuda/kernels/shared_memory.h"
#include "engine/backend/step_batch.h"

namespace tidal::cuda {
namespace {

constexpr int32_t kNumThreads = 256;
constexpr int32_t kNumWarps = kNumThreads / kWarpSize;

// Elements that a thread takes at once: 16 bytes of T.
constexpr int32_t kVector = 8;

// A row a block.
template <typename... Parameters, typename... Arguments>
cudaError_t LaunchRows(const ElementwiseLaunch& launch, const ModelDims& dims, size_t shared_bytes,
                       void (*kernel)(Parameters...), const Arguments&... arguments) {
  if (!SupportsElementwise(dims) || launch.num_rows < 1) return cudaErrorInvalidValue;
  if (cudaError_t error = AllowSharedBytes(kernel, shared_bytes); error != cudaSuccess) {
    return error;
  }
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<uint32_t>(launch.num_rows));
  config.blockDim = dim3(kNumThreads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = launch.stream;
  config.attrs = &attribute;
  config.numAttrs = launch.dependent ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

__device__ int32_t Row() { return static_cast<int32_t>(blockIdx.x); }

// Calls visit(first) for each run of kVector elements of a row, in one thread of the block.
template <typename Visit>
__device__ void ForEachVector(int32_t size, const Visit& visit) {
  for (int32_t first = static_cast<int32_t>(threadIdx.x) * kVector; first < size;
       first += kNumThreads * kVector) {
    visit(first);
  }
}

template <typename T>
__device__ void Load(const T* source, float (&values)[kVector]) {
  const uint4 packed = *reinterpret_cast<const uint4*>(source);
  const uint32_t words[] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < kVector / 2; ++i) {
    const float2 pair = UnpackPair(T(), words[i]);
    values[2 * i] = pair.x;
    values[2 * i + 1] = pair.y;
  }
}

template <>
__device__ void Load<float>(const float* source, float (&values)[kVector]) {
  const float4 low = reinterpret_cast<const float4*>(source)[0];
  const float4 high = reinterpret_cast<const float4*>(source)[1];
  values[0] = low.x;
  values[1] = low.y;
  values[2] = low.z;
  values[3] = low.w;
  values[4] = high.x;
  values[5] = high.y;
  values[6] = high.z;
  values[7] = high.w;
}

template <typename T>
__device__ void Store(const float (&values)[kVector], T* target) {
  *reinterpret_cast<uint4*>(target) =
      uint4{PackPair(T(), values[0], values[1]), PackPair(T(), values[2], values[3]),
            PackPair(T(), values[4], values[5]), PackPair(T(), values[6], values[7])};
}

template <>
__device__ void Store<float>(const float (&values)[kVector], float* target) {
  reinterpret_cast<float4*>(target)[0] = float4{values[0], values[1], values[2], values[3]};
  reinterpret_cast<float4*>(target)[1] = float4{values[4], values[5], values[6], values[7]};
}

// Adds bias[first ..], where there is one.
__device__ void AddBias(const float* bias, int32_t first, float (&values)[kVector]) {
  if (bias == nullptr) return;
  float added[kVector];
  Load(bias + first, added);
#pragma unroll
  for (int i = 0; i < kVector; ++i) values[i] += added[i];
}

template <typename T>
__global__ void __launch_bounds__(kNumThreads)
    EmbedKernel(StepView step, const SamplerSlot* slots, const T* embedding, int32_t hidden_size,
                float* hidden) {
  LetNextKernelStart();
  WaitForPreviousKernels();
  const int32_t row = Row();
  const bool is_real = row < step.counts->num_rows;
  int32_t token_id = 0;
  if (is_real) {
    token_id = step.token_ids[row];
    if (token_id == kLastSampledToken) {
      token_id = slots[step.chunks[step.chunk_of_row[row]].sampler_slot].last_token;
    }
  }
  ForEachVector(hidden_size, [&](int32_t first) {
    float values[kVector] = {};
    if (is_real) Load(embedding + int64_t{token_id} * hidden_size + first, values);
    Store(values, hidden + int64_t{row} * hidden_size + first);
  });
}

// The sum of `value` over the block's threads, in all of them.
__device__ float SumOverBlock(float value) {
  float* sums = reinterpret_cast<float*>(DynamicSharedMemory());
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kFullWarp, value, distance);
  }
  if (threadIdx.x % kWarpSize == 0) sums[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  float total = 0.0f;
#pragma unroll
  for (int warp = 0; warp < kNumWarps; ++warp) total += sums[warp];
  return total;
}

template <typename T>
__device__ void Normalize(const float* hidden, const float* weight, int32_t hidden_size, float eps,
                          T* output) {
  float sum = 0.0f;
  ForEachVector(hidden_size, [&](int32_t first) {
    float values[kVector];
    Load(hidden + first, values);
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum += values[i] * values[i];
  });
  const float inverse_rms = rsqrtf(SumOverBlock(sum) / static_cast<float>(hidden_size) + eps);
  ForEachVector(hidden_size, [&](int32_t first) {
    float values[kVector];
    float weights[kVector];
    Load(hidden + first, values);
    Load(weight + first, weights);
#pragma unroll
    for (int i = 0; i < kVector; ++i) values[i] *= inverse_rms * weights[i];
    Store(values, output + first);
  });
}

template <typename T>
__global__ void __launch_bounds__(kNumThreads)
    RmsNormKernel(const float* hidden, const float* weight, int32_t hidden_size, float eps,
                  T* output) {
  LetNextKernelStart();
  WaitForPreviousKernels();
  const int64_t offset = int64_t{Row()} * hidden_size;
  Normalize(hidden + offset, weight, hidden_size, eps, output + offset);
}

template <typename T>
__global__ void __launch_bounds__(kNumThreads)
    SampledRmsNormKernel(StepView step, const float* hidden, const float* weight,
                         int32_t hidden_size, float eps, T* output) {
  LetNextKernelStart();
  WaitForPreviousKernels();
  T* output_row = output + int64_t{Row()} * hidden_size;
  if (Row() >= step.counts->num_samples) {
    ForEachVector(hidden_size, [&](int32_t first) {
      const float zeros[kVector] = {};
      Store(zeros, output_row + first);
    });
    return;
  }
  const DeviceChunk& chunk = step.chunks[step.sampling_chunks[Row()]];
  const int64_t row = chunk.first_row + chunk.num_tokens - 1;
  Normalize(hidden + row * hidden_size, weight, hidden_size, eps, output_row);
}

template <typename T>
__global__ void __launch_bounds__(kNumThreads)
    RotateAndStoreKernel(RotateAndStore<T> arguments, int32_t num_query_heads) {
  LetNextKernelStart();
  WaitForPreviousKernels();
  const int32_t row = Row();
  const int32_t head_dim = arguments.cache.head_dim;
  const int32_t num_kv_heads = arguments.cache.num_kv_heads;
  const int32_t qkv_size = (num_query_heads + 2 * num_kv_heads) * head_dim;
  const bool is_real = row < arguments.step.counts->num_rows;
  const int32_t cache_row = is_real ? arguments.step.cache_rows[row] : 0;
  const float position = is_real ? static_cast<float>(arguments.step.positions[row]) : 0.0f;
  ForEachVector(qkv_size, [&](int32_t first) {
    float values[kVector];
    Load(arguments.qkv + int64_t{row} * qkv_size + first, values);
    AddBias(arguments.bias, first, values);
    const int32_t head = first / head_dim;
    const int32_t element = first % head_dim;
    const int32_t first_value_head = num_query_heads + num_kv_heads;
    if (head >= first_value_head) {
      if (!is_real) return;
      Store(values, arguments.cache.base + arguments.cache.value_offset() +
                        arguments.cache.key_offset(cache_row, head - first_value_head) + element);
      return;
    }
    T* target = nullptr;
    if (head < num_query_heads) {
      target = arguments.query + (int64_t{row} * num_query_heads + head) * head_dim;
    } else if (is_real) {
      target = arguments.cache.base + arguments.cache.key_offset(cache_row, head - num_query_heads);
    } else {
      return;
    }
    // Pairs of neighbouring columns become elements half a head apart.
    float rotated[2][kVector / 2];
#pragma unroll
    for (int i = 0; i < kVector / 2; ++i) {
      float sine;
      float cosine;
      sincosf(position * arguments.inverse_frequencies[element / 2 + i], &sine, &cosine);
      rotated[0][i] = values[2 * i] * cosine - values[2 * i + 1] * sine;
      rotated[1][i] = values[2 * i + 1] * cosine + values[2 * i] * sine;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      *reinterpret_cast<uint2*>(target + half * (head_dim / 2) + element / 2) =
          uint2{PackPair(T(), rotated[half][0], rotated[half][1]),
                PackPair(T(), rotated[half][2], rotated[half][3])};
    }
  });
}

template <typename T>
__global__ void __launch_bounds__(kNumThreads)
    SiluMultiplyKernel(const T* gate_up, const float* bias, int32_t intermediate_size, T* output) {
  LetNextKernelStart();
  WaitForPreviousKernels();
  const T* source = gate_up + int64_t{Row()} * 2 * intermediate_size;
  T* target = output + int64_t{Row()} * intermediate_size;
  ForEachVector(intermediate_size, [&](int32_t first) {
    float products[kVector];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float values[kVector];
      Load(source + 2 * first + half * kVector, values);
      AddBias(bias, 2 * first + half * kVector, values);
#pragma unroll
      for (int i = 0; i < kVector / 2; ++i) {
        const float gate = values[2 * i];
        products[half * (kVector / 2) + i] = gate / (1.0f + __expf(-gate)) * values[2 * i + 1];
      }
    }
    Store(products, target + first);
  });
}

__global__ void __launch_bounds__(kNumThreads)
    AddBiasKernel(const float* bias, int32_t hidden_size, float* hidden) {
  LetNextKernelStart();
  WaitForPreviousKernels();
  ForEachVector(hidden_size, [&](int32_t first) {
    float* target = hidden + int64_t{Row()} * hidden_size + first;
    float values[kVector];
    Load(target, values);
    AddBias(bias, first, values);
    Store(values, target);
  });
}

constexpr size_t kSumBytes = kNumWarps * sizeof(float);

}  // namespace

bool SupportsElementwise(const ModelDims& dims) {
  return dims.hidden_size % kVector == 0 && dims.intermediate_size % kVector == 0 &&
         dims.head_dim % kVector == 0;
}

template <typename T>
cudaError_t LaunchEmbed(const ElementwiseLaunch& launch, const ModelDims& dims,
                        const StepView& step, const SamplerSlot* slots, const T* embedding,
                        float* hidden) {
  return LaunchRows(launch, dims, 0, EmbedKernel<T>, step, slots, embedding, dims.hidden_size,
                    hidden);
}

template <typename T>
cudaError_t LaunchRmsNorm(const ElementwiseLaunch& launch, const ModelDims& dims,
                          const float* hidden, const float* weight, T* output) {
  return LaunchRows(launch, dims, kSumBytes, RmsNormKernel<T>, hidden, weight, dims.hidden_size,
                    dims.rms_norm_eps, output);
}

template <typename T>
cudaError_t LaunchSampledRmsNorm(const ElementwiseLaunch& launch, const ModelDims& dims,
                                 const StepView& step, const float* hidden, const float* weight,
                                 T* output) {
  return LaunchRows(launch, dims, kSumBytes, SampledRmsNormKernel<T>, step, hidden, weight,
                    dims.hidden_size, dims.rms_norm_eps, output);
}

template <typename T>
cudaError_t LaunchRotateAndStore(const ElementwiseLaunch& launch, const ModelDims& dims,
                                 const RotateAndStore<T>& arguments) {
  return LaunchRows(launch, dims, 0, RotateAndStoreKernel<T>, arguments, dims.num_query_heads);
}

template <typename T>
cudaError_t LaunchSiluMultiply(const ElementwiseLaunch& launch, const ModelDims& dims,
                               const T* gate_up, const float* bias, T* output) {
  return LaunchRows(launch, dims, 0, SiluMultiplyKernel<T>, gate_up, bias, dims.intermediate_size,
                    output);
}

cudaError_t LaunchAddBias(const ElementwiseLaunch& launch, const ModelDims& dims, const float* bias,
                          float* hidden) {
  return LaunchRows(launch, dims, 0, AddBiasKernel, bias, dims.hidden_size, hidden);
}

#define TIDAL_INSTANTIATE_ELEMENTWISE(T)                                                           \
  template cudaError_t LaunchEmbed<T>(const ElementwiseLaunch&, const ModelDims&, const StepView&, \
                                      const SamplerSlot*, const T*, float*);                       \
  template cudaError_t LaunchRmsNorm<T>(const ElementwiseLaunch&, const ModelDims&, const float*,  \
                                        const float*, T*);                                         \
  template cudaError_t LaunchSampledRmsNorm<T>(const ElementwiseLaunch&, const ModelDims&,         \
                                               const StepView&, const float*, const float*, T*);   \
  template cudaError_t LaunchRotateAndStore<T>(const ElementwiseLaunch&, const ModelDims&,         \
                                               const RotateAndStore<T>&);                          \
  template cudaError_t LaunchSiluMultiply<T>(const ElementwiseLaunch&, const ModelDims&, const T*, \
                                             const float*, T*)
TIDAL_INSTANTIATE_ELEMENTWISE(__nv_bfloat16);
TIDAL_INSTANTIATE_ELEMENTWISE(__half);
#undef TIDAL_INSTANTIATE_ELEMENTWISE

}  // namespace tidal::cuda
