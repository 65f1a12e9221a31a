#include "cuda/kernels/decode_attention.h"

#include <algorithm>
#include <cmath>

#include "cuda/kernels/decode_attention_context.cuh"
#include "cuda/kernels/decode_attention_select.cuh"
#include "cuda/kernels/decode_attention_sparse.cuh"
#include "cuda/kernels/shared_memory.h"

namespace tidal::cuda {
namespace {

using decode::Arguments;

// Blocks of a selection's cluster: more where that fills the device better.
constexpr int32_t kClusterBlocks = 4;
constexpr int32_t kMaxClusterBlocks = decode::kMaxSelectBlocks;

bool IsSm90(const DecodeAttentionDevice& device) { return device.max_cluster_size > 1; }

constexpr int64_t kAlignment = 256;

int64_t AlignUp(int64_t num_bytes) {
  return (num_bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// Where the workspace's arrays begin, in bytes.
struct WorkspaceLayout {
  int64_t scores = 0;
  int64_t softmax;
  int64_t partials;
  int64_t counters;
  int64_t positions;
  int64_t cache_rows;
  int64_t sparse_outputs;
  int64_t sparse_softmax;
  int64_t sparse_counters;
  int64_t end;

  WorkspaceLayout(const DecodeAttentionDevice& device, const ModelDims& dims,
                  const DecodeAttentionLimits& limits) {
    constexpr int64_t kWordBytes = 4;
    const int64_t num_heads = dims.num_query_heads;
    const int64_t num_sequences = limits.max_batch_sequences;
    const int64_t selection_bytes =
        num_sequences * num_heads * limits.max_token_budget * kWordBytes;
    // Each block leaves two shares of a group at most, of head_dim outputs and a float2 a head.
    const int64_t partial_bytes = int64_t{device.num_multiprocessors} * 2 * dims.group_size() *
                                  (dims.head_dim + 2) * kWordBytes;
    softmax = scores + AlignUp(limits.max_score_tokens * num_heads * kWordBytes);
    partials = softmax + AlignUp(num_sequences * num_heads * 2 * kWordBytes);
    counters = partials + AlignUp(partial_bytes);
    positions = counters + AlignUp(num_sequences * dims.num_kv_heads * kWordBytes);
    cache_rows = positions + AlignUp(selection_bytes);
    sparse_outputs = cache_rows + AlignUp(selection_bytes);
    const int64_t num_parts = num_sequences * num_heads * decode::kSparseParts;
    sparse_softmax = sparse_outputs + AlignUp(num_parts * dims.head_dim * kWordBytes);
    sparse_counters = sparse_softmax + AlignUp(num_parts * 2 * kWordBytes);
    end = sparse_counters + AlignUp(num_sequences * num_heads * kWordBytes);
  }
};

template <typename T>
bool IsValid(const DecodeAttentionLaunch& launch, const ModelDims& dims,
             const DecodeAttention<T>& arguments) {
  return SupportsDecodeAttention(dims) && arguments.cache.num_kv_heads == dims.num_kv_heads &&
         arguments.cache.head_dim == dims.head_dim && launch.first_chunk >= 0 &&
         launch.num_chunks >= 1 && launch.num_chunks <= kMaxAttentionChunks &&
         launch.device.num_multiprocessors >= 1;
}

template <typename T>
bool IsValidForSets(const DecodeAttentionLaunch& launch, const ModelDims& dims,
                    const DecodeAttention<T>& arguments) {
  return IsValid(launch, dims, arguments) && launch.max_sets >= 1 &&
         launch.max_sets <= dims.num_query_heads;
}

template <typename T>
Arguments<T> MakeArguments(const DecodeAttentionLaunch& launch, const ModelDims& dims,
                           const DecodeAttention<T>& arguments) {
  Arguments<T> result = {};
  result.query = arguments.query;
  result.cache = arguments.cache;
  result.output = arguments.output;
  result.step = arguments.step;
  result.workspace = arguments.workspace;
  for (int mode = 0; mode < kNumAttentionModes; ++mode) {
    result.kinds |= static_cast<uint32_t>(arguments.pass.kind(static_cast<AttentionMode>(mode)))
                    << (8 * mode);
  }
  result.num_query_heads = dims.num_query_heads;
  result.group_size = dims.group_size();
  result.first_chunk = launch.first_chunk;
  result.num_chunks = launch.num_chunks;
  result.max_sets = launch.max_sets;
  result.score_scale = 1.0f / std::sqrt(static_cast<float>(dims.head_dim));
  return result;
}

// A launch of `grid`, whose x is in clusters of `cluster_size` blocks each.
template <typename T>
cudaError_t Launch(const DecodeAttentionLaunch& launch, void (*kernel)(Arguments<T>), dim3 grid,
                   int32_t cluster_size, int32_t num_threads, size_t shared_bytes,
                   const Arguments<T>& arguments) {
  cudaLaunchAttribute attributes[2] = {};
  unsigned num_attributes = 0;
  if (launch.dependent) {
    cudaLaunchAttribute& attribute = attributes[num_attributes++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster_size > 1) {
    cudaLaunchAttribute& attribute = attributes[num_attributes++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(cluster_size);
    attribute.val.clusterDim.y = 1;
    attribute.val.clusterDim.z = 1;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(num_threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = launch.stream;
  config.attrs = attributes;
  config.numAttrs = num_attributes;
  return cudaLaunchKernelEx(&config, kernel, arguments);
}

// `num_blocks` for each of `num_tasks` of each chunk.
dim3 TaskGrid(const DecodeAttentionLaunch& launch, int32_t num_blocks, int32_t num_tasks) {
  return dim3(static_cast<unsigned>(num_blocks), static_cast<unsigned>(num_tasks),
              static_cast<unsigned>(launch.num_chunks));
}

template <typename T, int kHeadDim>
cudaError_t LaunchContext(const DecodeAttentionLaunch& launch, const Arguments<T>& arguments) {
  return Launch(
      launch, decode::ContextAttentionKernel<T, kHeadDim>,
      dim3(static_cast<unsigned>(launch.device.num_multiprocessors)), 1, decode::kNumThreads,
      decode::ContextSharedBytes<kHeadDim>(IsSm90(launch.device), launch.num_chunks), arguments);
}

template <typename T, int kHeadDim>
cudaError_t LaunchSparse(const DecodeAttentionLaunch& launch, const Arguments<T>& arguments) {
  // Every KV head is attended, even where all heads share a set.
  const int32_t max_tasks = std::max(launch.max_sets, arguments.cache.num_kv_heads);
  // Where few multiprocessors have a task, the others get a block without one: else some of them
  // would get two blocks of the next product, which starts beside these, and others none.
  const int32_t num_multiprocessors = launch.device.num_multiprocessors;
  const int32_t blocks_a_task = decode::kSparseParts * launch.num_chunks;
  const int32_t num_tasks = 2 * blocks_a_task * max_tasks > num_multiprocessors
                                ? max_tasks
                                : (num_multiprocessors + blocks_a_task - 1) / blocks_a_task;
  return Launch(launch, decode::SparseAttentionKernel<T, kHeadDim>,
                TaskGrid(launch, decode::kSparseParts, num_tasks), 1, decode::kNumThreads,
                decode::SparseSharedBytes<kHeadDim>(IsSm90(launch.device)), arguments);
}

template <typename T, int kHeadDim>
cudaError_t AllowSharedBytesOfHeads(bool is_sm90) {
  if (cudaError_t error =
          AllowSharedBytes(decode::ContextAttentionKernel<T, kHeadDim>,
                           decode::ContextSharedBytes<kHeadDim>(is_sm90, kMaxAttentionChunks));
      error != cudaSuccess) {
    return error;
  }
  return AllowSharedBytes(decode::SparseAttentionKernel<T, kHeadDim>,
                          decode::SparseSharedBytes<kHeadDim>(is_sm90));
}

template <typename T>
cudaError_t AllowSharedBytesOfType(bool is_sm90) {
  for (cudaError_t error :
       {AllowSharedBytesOfHeads<T, 64>(is_sm90), AllowSharedBytesOfHeads<T, 128>(is_sm90),
        AllowSharedBytes(decode::SelectKernel<T>, decode::SelectSharedBytes(is_sm90))}) {
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t InitDecodeAttention(DecodeAttentionDevice* device) {
  int ordinal = 0;
  if (cudaError_t error = cudaGetDevice(&ordinal); error != cudaSuccess) return error;
  int num_multiprocessors = 0;
  int major = 0;
  for (cudaError_t error :
       {cudaDeviceGetAttribute(&num_multiprocessors, cudaDevAttrMultiProcessorCount, ordinal),
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal)}) {
    if (error != cudaSuccess) return error;
  }
  constexpr int kFirstMajorWithClusters = 9;
  device->num_multiprocessors = num_multiprocessors;
  device->max_cluster_size = major >= kFirstMajorWithClusters ? kMaxClusterBlocks : 1;
  const bool is_sm90 = IsSm90(*device);
  if (cudaError_t error = AllowSharedBytesOfType<__nv_bfloat16>(is_sm90); error != cudaSuccess) {
    return error;
  }
  return AllowSharedBytesOfType<__half>(is_sm90);
}

bool SupportsDecodeAttention(const ModelDims& dims) {
  return (dims.head_dim == 64 || dims.head_dim == 128) && dims.num_kv_heads >= 1 &&
         dims.num_query_heads % dims.num_kv_heads == 0 && dims.group_size() >= 1 &&
         dims.group_size() <= kMaxAttentionGroup;
}

int64_t DecodeAttentionWorkspaceBytes(const DecodeAttentionDevice& device, const ModelDims& dims,
                                      const DecodeAttentionLimits& limits) {
  return WorkspaceLayout(device, dims, limits).end;
}

DecodeAttentionWorkspace MakeDecodeAttentionWorkspace(void* memory,
                                                      const DecodeAttentionDevice& device,
                                                      const ModelDims& dims,
                                                      const DecodeAttentionLimits& limits) {
  const WorkspaceLayout layout(device, dims, limits);
  char* base = static_cast<char*>(memory);
  DecodeAttentionWorkspace workspace = {};
  workspace.scores = reinterpret_cast<float*>(base + layout.scores);
  workspace.max_score_tokens = limits.max_score_tokens;
  workspace.softmax = reinterpret_cast<float2*>(base + layout.softmax);
  workspace.partials = reinterpret_cast<float*>(base + layout.partials);
  workspace.counters = reinterpret_cast<uint32_t*>(base + layout.counters);
  workspace.positions = reinterpret_cast<int32_t*>(base + layout.positions);
  workspace.cache_rows = reinterpret_cast<int32_t*>(base + layout.cache_rows);
  workspace.max_token_budget = limits.max_token_budget;
  workspace.sparse_outputs = reinterpret_cast<float*>(base + layout.sparse_outputs);
  workspace.sparse_softmax = reinterpret_cast<float2*>(base + layout.sparse_softmax);
  workspace.sparse_counters = reinterpret_cast<uint32_t*>(base + layout.sparse_counters);
  return workspace;
}

template <typename T>
cudaError_t LaunchContextAttention(const DecodeAttentionLaunch& launch, const ModelDims& dims,
                                   const DecodeAttention<T>& arguments) {
  if (!IsValid(launch, dims, arguments)) return cudaErrorInvalidValue;
  const Arguments<T> all = MakeArguments(launch, dims, arguments);
  return dims.head_dim == 64 ? LaunchContext<T, 64>(launch, all)
                             : LaunchContext<T, 128>(launch, all);
}

template <typename T>
cudaError_t LaunchSelection(const DecodeAttentionLaunch& launch, const ModelDims& dims,
                            const DecodeAttention<T>& arguments) {
  if (!IsValidForSets(launch, dims, arguments)) return cudaErrorInvalidValue;
  const bool fits =
      launch.num_chunks * launch.max_sets <= launch.device.num_multiprocessors / kMaxClusterBlocks;
  const int32_t cluster_size =
      std::min(fits ? kMaxClusterBlocks : kClusterBlocks, launch.device.max_cluster_size);
  return Launch(launch, decode::SelectKernel<T>, TaskGrid(launch, cluster_size, launch.max_sets),
                cluster_size, decode::kSelectThreads,
                decode::SelectSharedBytes(IsSm90(launch.device)),
                MakeArguments(launch, dims, arguments));
}

template <typename T>
cudaError_t LaunchSparseAttention(const DecodeAttentionLaunch& launch, const ModelDims& dims,
                                  const DecodeAttention<T>& arguments) {
  if (!IsValidForSets(launch, dims, arguments)) return cudaErrorInvalidValue;
  const Arguments<T> all = MakeArguments(launch, dims, arguments);
  return dims.head_dim == 64 ? LaunchSparse<T, 64>(launch, all) : LaunchSparse<T, 128>(launch, all);
}

#define TIDAL_INSTANTIATE_DECODE_ATTENTION(T)                                                    \
  template cudaError_t LaunchContextAttention<T>(const DecodeAttentionLaunch&, const ModelDims&, \
                                                 const DecodeAttention<T>&);                     \
  template cudaError_t LaunchSelection<T>(const DecodeAttentionLaunch&, const ModelDims&,        \
                                          const DecodeAttention<T>&);                            \
  template cudaError_t LaunchSparseAttention<T>(const DecodeAttentionLaunch&, const ModelDims&,  \
                                                const DecodeAttention<T>&)
TIDAL_INSTANTIATE_DECODE_ATTENTION(__nv_bfloat16);
TIDAL_INSTANTIATE_DECODE_ATTENTION(__half);
#undef TIDAL_INSTANTIATE_DECODE_ATTENTION

}  // namespace tidal::cuda
