// The CUDA runtime on the host: memory is the heap's, streams and graphs are lists of what to do.
// Not thread-safe: one thread at a time uses it.

#include "tests/cuda/emulation/runtime.h"

#include <cuda.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <vector>

// The runtime's own types, which its headers only name.
struct CUgraph_st {
  std::vector<std::function<void()>> work;
};
struct CUgraphExec_st {
  std::vector<std::function<void()>> work;
};
struct CUstream_st {
  std::deque<std::function<void()>> queue;
  std::unique_ptr<CUgraph_st> recording;
};
struct CUevent_st {
  CUstream_st* stream = nullptr;
  uint64_t num_recorded = 0;  // times it was recorded, and how many of them have been reached
  uint64_t num_reached = 0;
};

namespace tidal::cuda::emulation {
namespace {

constexpr int kMultiprocessors = 6;
constexpr int kSharedPerMultiprocessor = 228 << 10;
constexpr int kMaxSharedPerBlock = 227 << 10;
constexpr int kReservedSharedPerBlock = 1 << 10;
constexpr int kDefaultSharedPerBlock = 48 << 10;
constexpr unsigned char kPoison = 0xFF;
constexpr size_t kAlignment = 256;
constexpr size_t kTotalMemory = size_t{8} << 30;

struct Runtime {
  std::map<const void*, int> shared_bytes;      // allowed, by kernel
  std::map<const char*, size_t> device_memory;  // start -> bytes
  std::map<const char*, size_t> pinned_memory;
  std::set<CUstream_st*> streams;
  std::mt19937 random{1};
  cudaError_t last_error = cudaSuccess;
  size_t used_memory = 0;
};

Runtime& runtime() {
  static Runtime instance;
  return instance;
}

cudaError_t Return(cudaError_t error) {
  if (error != cudaSuccess) runtime().last_error = error;
  return error;
}

void RunOne(CUstream_st* stream) {
  const std::function<void()> work = std::move(stream->queue.front());
  stream->queue.pop_front();
  work();
}

void RunAll(CUstream_st* stream) {
  while (!stream->queue.empty()) RunOne(stream);
}

void RunUntilReached(CUevent_st* event, uint64_t num_recorded) {
  while (event->num_reached < num_recorded) RunOne(event->stream);
}

bool IsPinned(const void* pointer) {
  const auto& pinned = runtime().pinned_memory;
  auto it = pinned.upper_bound(static_cast<const char*>(pointer));
  if (it == pinned.begin()) return false;
  --it;
  return static_cast<const char*>(pointer) < it->first + it->second;
}

cudaError_t Allocate(void** pointer, size_t num_bytes, std::map<const char*, size_t>* memory) {
  if (posix_memalign(pointer, kAlignment, num_bytes > 0 ? num_bytes : 1) != 0) {
    return cudaErrorMemoryAllocation;
  }
  std::memset(*pointer, kPoison, num_bytes);
  (*memory)[static_cast<const char*>(*pointer)] = num_bytes;
  return cudaSuccess;
}

cudaError_t Release(void* pointer, std::map<const char*, size_t>* memory) {
  if (pointer == nullptr) return cudaSuccess;
  const auto it = memory->find(static_cast<const char*>(pointer));
  if (it == memory->end()) return Return(cudaErrorInvalidValue);
  if (memory == &runtime().device_memory) runtime().used_memory -= it->second;
  memory->erase(it);
  std::free(pointer);
  return cudaSuccess;
}

}  // namespace

cudaError_t ReadConfig(const cudaLaunchConfig_t& config, const void* kernel, Launch* launch) {
  launch->grid = config.gridDim;
  launch->block = config.blockDim;
  launch->shared_bytes = config.dynamicSmemBytes;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    if (attribute.id == cudaLaunchAttributeClusterDimension) {
      launch->cluster_size = attribute.val.clusterDim.x;
    } else if (attribute.id == cudaLaunchAttributeProgrammaticStreamSerialization) {
      launch->dependent = attribute.val.programmaticStreamSerializationAllowed != 0;
    }
  }
  const auto allowed = runtime().shared_bytes.find(kernel);
  const int max_bytes =
      allowed == runtime().shared_bytes.end() ? kDefaultSharedPerBlock : allowed->second;
  if (static_cast<int>(launch->shared_bytes) > max_bytes || launch->grid.x == 0 ||
      launch->grid.x % launch->cluster_size != 0) {
    return Return(cudaErrorInvalidValue);
  }
#ifdef TIDAL_EMULATED_SM80
  if (launch->cluster_size > 1) return Return(cudaErrorInvalidValue);
#endif
  return cudaSuccess;
}

cudaError_t Enqueue(cudaStream_t stream, std::function<void()> work) {
  if (stream == nullptr) return Return(cudaErrorInvalidResourceHandle);  // no default stream
  if (stream->recording != nullptr) {
    stream->recording->work.push_back(std::move(work));
    return cudaSuccess;
  }
  stream->queue.push_back(std::move(work));
  if (runtime().random() % 8 == 0) RunAll(stream);
  return cudaSuccess;
}

void AllowSharedBytes(const void* kernel, int num_bytes) {
  runtime().shared_bytes[kernel] = num_bytes;
}

}  // namespace tidal::cuda::emulation

namespace {

// Of cuTensorMapEncodeTiled what kernels use: two dimensions, 2-byte elements, a swizzle of 128
// bytes.
CUresult EncodeTensorMap(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* base,
                         const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                         const cuuint32_t* element_strides, CUtensorMapInterleave interleave,
                         CUtensorMapSwizzle swizzle, CUtensorMapL2promotion /*promotion*/,
                         CUtensorMapFloatOOBfill fill) {
  constexpr uint32_t kElementBytes = 2;
  constexpr uint64_t kMaxSize = uint64_t{1} << 32;
  constexpr uint64_t kMaxStride = uint64_t{1} << 40;
  constexpr uint32_t kMaxBox = 256;
  constexpr uint32_t kSwizzleBytes = 128;
  constexpr uint64_t kAlignment = 16;
  const bool is_known_type =
      type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 || type == CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  if (reinterpret_cast<uintptr_t>(map) % 64 != 0 || !is_known_type || rank != 2 ||
      reinterpret_cast<uintptr_t>(base) % kAlignment != 0 || sizes[0] == 0 || sizes[1] == 0 ||
      sizes[0] > kMaxSize || sizes[1] > kMaxSize || strides[0] % kAlignment != 0 ||
      strides[0] >= kMaxStride || strides[0] < sizes[0] * kElementBytes || box[0] == 0 ||
      box[1] == 0 || box[0] > kMaxBox || box[1] > kMaxBox ||
      box[0] * kElementBytes != kSwizzleBytes || element_strides[0] != 1 ||
      element_strides[1] != 1 || interleave != CU_TENSOR_MAP_INTERLEAVE_NONE ||
      swizzle != CU_TENSOR_MAP_SWIZZLE_128B || fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  using tidal::cuda::emulation::TensorMap;
  static_assert(sizeof(TensorMap) <= sizeof(CUtensorMap));
  const TensorMap contents = {TensorMap::kMagic,
                              static_cast<const char*>(base),
                              sizes[1],
                              sizes[0],
                              strides[0],
                              kElementBytes,
                              box[1],
                              box[0]};
  std::memcpy(static_cast<void*>(map), &contents, sizeof(contents));
  return CUDA_SUCCESS;
}

}  // namespace

using tidal::cuda::emulation::Allocate;
using tidal::cuda::emulation::Enqueue;
using tidal::cuda::emulation::IsPinned;
using tidal::cuda::emulation::Release;
using tidal::cuda::emulation::Return;
using tidal::cuda::emulation::RunAll;
using tidal::cuda::emulation::runtime;
using tidal::cuda::emulation::RunUntilReached;

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : Return(cudaErrorInvalidDevice);
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int /*device*/) {
  *properties = {};
  std::strcpy(properties->name, "emulated device");
  properties->totalGlobalMem = tidal::cuda::emulation::kTotalMemory;
  properties->multiProcessorCount = tidal::cuda::emulation::kMultiprocessors;
  cudaDeviceGetAttribute(&properties->major, cudaDevAttrComputeCapabilityMajor, 0);
  cudaDeviceGetAttribute(&properties->minor, cudaDevAttrComputeCapabilityMinor, 0);
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int /*device*/) {
  namespace emulation = tidal::cuda::emulation;
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = emulation::kMultiprocessors;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = emulation::kSharedPerMultiprocessor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = emulation::kMaxSharedPerBlock;
      return cudaSuccess;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      *value = emulation::kReservedSharedPerBlock;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
#ifdef TIDAL_EMULATED_SM80
      *value = 8;
#else
      *value = 9;
#endif
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    default:
      return Return(cudaErrorInvalidValue);
  }
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function,
                                             unsigned /*version*/, unsigned long long /*flags*/,
                                             cudaDriverEntryPointQueryResult* result) {
  const bool is_known = std::strcmp(symbol, "cuTensorMapEncodeTiled") == 0;
  *function = is_known ? reinterpret_cast<void*>(&EncodeTensorMap) : nullptr;
  *result = is_known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return std::exchange(runtime().last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return runtime().last_error; }
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "error of the emulated device";
}
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaSuccess ? "cudaSuccess" : "cudaError";
}

cudaError_t cudaMalloc(void** pointer, size_t num_bytes) {
  namespace emulation = tidal::cuda::emulation;
  if (runtime().used_memory + num_bytes > emulation::kTotalMemory) {
    return Return(cudaErrorMemoryAllocation);
  }
  runtime().used_memory += num_bytes;
  return Return(Allocate(pointer, num_bytes, &runtime().device_memory));
}
cudaError_t cudaFree(void* pointer) {
  for (CUstream_st* stream : runtime().streams) RunAll(stream);
  return Release(pointer, &runtime().device_memory);
}
cudaError_t cudaMallocHost(void** pointer, size_t num_bytes) {
  return Return(Allocate(pointer, num_bytes, &runtime().pinned_memory));
}
cudaError_t cudaHostAlloc(void** pointer, size_t num_bytes, unsigned /*flags*/) {
  return cudaMallocHost(pointer, num_bytes);
}
cudaError_t cudaFreeHost(void* pointer) {
  for (CUstream_st* stream : runtime().streams) RunAll(stream);
  return Release(pointer, &runtime().pinned_memory);
}
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned /*flags*/) {
  *device = host;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  namespace emulation = tidal::cuda::emulation;
  *total_bytes = emulation::kTotalMemory;
  *free_bytes = emulation::kTotalMemory - runtime().used_memory;
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t num_bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  if (num_bytes == 0) return cudaSuccess;
  if (kind == cudaMemcpyHostToDevice && !IsPinned(source)) {
    // Pageable memory is staged before the call returns.
    auto staged = std::make_shared<std::vector<char>>(static_cast<const char*>(source),
                                                      static_cast<const char*>(source) + num_bytes);
    return Enqueue(stream,
                   [target, staged] { std::memcpy(target, staged->data(), staged->size()); });
  }
  const cudaError_t error =
      Enqueue(stream, [target, source, num_bytes] { std::memcpy(target, source, num_bytes); });
  if (error == cudaSuccess && kind == cudaMemcpyDeviceToHost && !IsPinned(target)) RunAll(stream);
  return error;
}
cudaError_t cudaMemsetAsync(void* target, int value, size_t num_bytes, cudaStream_t stream) {
  return Enqueue(stream, [target, value, num_bytes] {
    if (num_bytes > 0) std::memset(target, value, num_bytes);
  });
}
cudaError_t cudaMemcpy(void* target, const void* source, size_t num_bytes,
                       cudaMemcpyKind /*kind*/) {
  cudaDeviceSynchronize();
  if (num_bytes > 0) std::memcpy(target, source, num_bytes);
  return cudaSuccess;
}
cudaError_t cudaMemset(void* target, int value, size_t num_bytes) {
  cudaDeviceSynchronize();
  if (num_bytes > 0) std::memset(target, value, num_bytes);
  return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  *stream = new CUstream_st;
  runtime().streams.insert(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned /*flags*/) {
  return cudaStreamCreate(stream);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  RunAll(stream);
  runtime().streams.erase(stream);
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (stream->recording != nullptr) return Return(cudaErrorStreamCaptureUnsupported);
  RunAll(stream);
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  for (CUstream_st* stream : runtime().streams) RunAll(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned /*flags*/) {
  const uint64_t num_recorded = event->num_recorded;
  return Enqueue(stream, [event, num_recorded] { RunUntilReached(event, num_recorded); });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned /*flags*/) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  RunUntilReached(event, event->num_recorded);
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (event->num_recorded > event->num_reached && event->stream != stream) {
    RunUntilReached(event, event->num_recorded);
  }
  event->stream = stream;
  ++event->num_recorded;
  return Enqueue(stream, [event] { ++event->num_reached; });
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  RunUntilReached(event, event->num_recorded);
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (event->num_reached == event->num_recorded) return cudaSuccess;
  if (runtime().random() % 2 == 0) return cudaErrorNotReady;
  return cudaEventSynchronize(event);
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t /*begin*/, cudaEvent_t /*end*/) {
  *milliseconds = 1.0f;
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode /*mode*/) {
  stream->recording = std::make_unique<CUgraph_st>();
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = stream->recording.release();
  return *graph != nullptr ? cudaSuccess : Return(cudaErrorStreamCaptureInvalidated);
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long /*flags*/) {
  *executable = new CUgraphExec_st{graph->work};
  return cudaSuccess;
}
cudaError_t cudaGraphUpload(cudaGraphExec_t /*executable*/, cudaStream_t /*stream*/) {
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  for (const std::function<void()>& work : executable->work) {
    const cudaError_t error = Enqueue(stream, work);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

}  // extern "C"
