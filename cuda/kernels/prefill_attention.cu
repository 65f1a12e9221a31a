#include "cuda/kernels/prefill_attention.h"

#include <cudaTypedefs.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <type_traits>

#include "cuda/kernels/prefill_attention_mma.cuh"
#include "cuda/kernels/prefill_attention_warpgroup.cuh"

namespace tidal::cuda {
namespace {

using prefill::kMmaSharedBytes;
using prefill::kMmaThreads;
using prefill::Parameters;
using prefill::PrefillMmaKernel;
using prefill::PrefillWarpgroupKernel;
using prefill::WarpgroupParameters;
using prefill::WarpgroupShape;

int32_t DivideUp(int32_t a, int32_t b) { return (a + b - 1) / b; }

// Keys that a tile's last row attends: what its time grows with.
int32_t NumKeys(const DeviceChunk& chunk, int32_t group_size, const PrefillTile& tile) {
  const int32_t last_token =
      std::min((tile.first_row + kPrefillTileRows - 1) / group_size, chunk.num_tokens - 1);
  return chunk.num_context_tokens - chunk.num_tokens + last_token + 1;
}

template <typename T, int kHeadDim>
cudaError_t InitKernels(bool has_warpgroup_mma) {
  const cudaError_t error =
      cudaFuncSetAttribute(PrefillMmaKernel<T, kHeadDim>,
                           cudaFuncAttributeMaxDynamicSharedMemorySize, kMmaSharedBytes<kHeadDim>);
  if (error != cudaSuccess || !has_warpgroup_mma) return error;
  return cudaFuncSetAttribute(PrefillWarpgroupKernel<T, kHeadDim>,
                              cudaFuncAttributeMaxDynamicSharedMemorySize,
                              WarpgroupShape<kHeadDim>::kSharedBytes);
}

template <typename T, int kHeadDim>
cudaError_t LaunchOfHeadDim(const PrefillLaunch& launch, const ModelDims& dims,
                            const PrefillAttention<T>& arguments) {
  Parameters<T> parameters = {};
  parameters.query = arguments.query;
  parameters.output = arguments.output;
  parameters.cache = arguments.cache;
  parameters.step = arguments.step;
  parameters.tiles = arguments.tiles;
  parameters.num_tiles = arguments.num_tiles;
  parameters.group_size = dims.group_size();
  parameters.scale_log2 =
      std::numbers::log2e_v<float> / std::sqrt(static_cast<float>(dims.head_dim));
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(arguments.num_tiles * dims.num_kv_heads));
  config.stream = launch.stream;
  config.attrs = &attribute;
  config.numAttrs = launch.dependent ? 1 : 0;
  if (launch.device.has_warpgroup_mma) {
    config.blockDim = dim3(prefill::kWarpgroupKernelThreads);
    config.dynamicSmemBytes = WarpgroupShape<kHeadDim>::kSharedBytes;
    const WarpgroupParameters<T> with_map = {parameters, *arguments.cache_map};
    return cudaLaunchKernelEx(&config, PrefillWarpgroupKernel<T, kHeadDim>, with_map);
  }
  config.blockDim = dim3(kMmaThreads);
  config.dynamicSmemBytes = kMmaSharedBytes<kHeadDim>;
  return cudaLaunchKernelEx(&config, PrefillMmaKernel<T, kHeadDim>, parameters);
}

}  // namespace

int32_t MaxPrefillTiles(int32_t max_batch_tokens, int32_t max_batch_sequences, int32_t group_size) {
  return DivideUp(max_batch_tokens * group_size, kPrefillTileRows) + max_batch_sequences;
}

int32_t BuildPrefillTiles(const DeviceChunk* chunks, int32_t num_chunks, int32_t group_size,
                          PrefillTile* tiles) {
  int32_t num_tiles = 0;
  for (int32_t i = 0; i < num_chunks; ++i) {
    if (chunks[i].num_tokens == 1) continue;
    const int32_t num_rows = chunks[i].num_tokens * group_size;
    for (int32_t row = 0; row < num_rows; row += kPrefillTileRows) tiles[num_tiles++] = {i, row};
  }
  std::stable_sort(tiles, tiles + num_tiles, [&](const PrefillTile& a, const PrefillTile& b) {
    return NumKeys(chunks[a.chunk], group_size, a) > NumKeys(chunks[b.chunk], group_size, b);
  });
  return num_tiles;
}

cudaError_t InitPrefillAttention(PrefillAttentionDevice* device) {
  *device = {};
  int ordinal = 0;
  int major = 0;
  int minor = 0;
  if (cudaError_t error = cudaGetDevice(&ordinal); error != cudaSuccess) return error;
  for (cudaError_t error :
       {cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal),
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ordinal)}) {
    if (error != cudaSuccess) return error;
  }
  const bool has_warpgroup_mma = major == 9 && minor == 0;
  for (cudaError_t error :
       {InitKernels<__nv_bfloat16, 64>(has_warpgroup_mma),
        InitKernels<__nv_bfloat16, 128>(has_warpgroup_mma),
        InitKernels<__half, 64>(has_warpgroup_mma), InitKernels<__half, 128>(has_warpgroup_mma)}) {
    if (error != cudaSuccess) return error;
  }
  device->has_warpgroup_mma = has_warpgroup_mma;
  return cudaSuccess;
}

template <typename T>
cudaError_t MakePrefillCacheMap(const KvCacheView<T>& layer_cache, int32_t num_blocks,
                                CUtensorMap* map) {
  constexpr unsigned kFirstVersion = 12000;  // of the driver's API, with tensor maps
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  if (cudaError_t error = cudaGetDriverEntryPointByVersion(
          "cuTensorMapEncodeTiled", &function, kFirstVersion, cudaEnableDefault, &result);
      error != cudaSuccess) {
    return error;
  }
  if (result != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
  const auto num_columns = static_cast<cuuint64_t>(layer_cache.head_dim);
  const cuuint64_t num_rows = cuuint64_t{2} * static_cast<cuuint64_t>(num_blocks) *
                              static_cast<cuuint64_t>(layer_cache.num_kv_heads) *
                              cuuint64_t{kBlockSize};
  if (num_rows > static_cast<cuuint64_t>(std::numeric_limits<int32_t>::max())) {
    return cudaErrorInvalidValue;
  }
  const cuuint64_t sizes[] = {num_columns, num_rows};
  const cuuint64_t strides[] = {num_columns * sizeof(T)};
  const cuuint32_t box[] = {prefill::kHalfElements, kBlockSize};
  const cuuint32_t element_strides[] = {1, 1};
  const auto encode = reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  const CUresult encoded =
      encode(map,
             std::is_same_v<T, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                       : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
             2, layer_cache.base, sizes, strides, box, element_strides,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return encoded == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

bool SupportsPrefillAttention(const ModelDims& dims) {
  return (dims.head_dim == 64 || dims.head_dim == 128) && dims.num_kv_heads >= 1 &&
         dims.num_query_heads % dims.num_kv_heads == 0 && dims.group_size() >= 1 &&
         dims.group_size() <= kMaxPrefillGroupSize;
}

template <typename T>
cudaError_t LaunchPrefillAttention(const PrefillLaunch& launch, const ModelDims& dims,
                                   const PrefillAttention<T>& arguments) {
  if (!SupportsPrefillAttention(dims) || arguments.num_tiles < 1 ||
      arguments.num_tiles > std::numeric_limits<int32_t>::max() / dims.num_kv_heads ||
      (launch.device.has_warpgroup_mma && arguments.cache_map == nullptr)) {
    return cudaErrorInvalidValue;
  }
  return dims.head_dim == 64 ? LaunchOfHeadDim<T, 64>(launch, dims, arguments)
                             : LaunchOfHeadDim<T, 128>(launch, dims, arguments);
}

#define TIDAL_INSTANTIATE_PREFILL_ATTENTION(T)                                               \
  template cudaError_t MakePrefillCacheMap<T>(const KvCacheView<T>&, int32_t, CUtensorMap*); \
  template cudaError_t LaunchPrefillAttention<T>(const PrefillLaunch&, const ModelDims&,     \
                                                 const PrefillAttention<T>&)
TIDAL_INSTANTIATE_PREFILL_ATTENTION(__nv_bfloat16);
TIDAL_INSTANTIATE_PREFILL_ATTENTION(__half);
#undef TIDAL_INSTANTIATE_PREFILL_ATTENTION

}  // namespace tidal::cuda
