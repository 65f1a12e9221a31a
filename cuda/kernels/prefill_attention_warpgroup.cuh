// Prefill attention by the matrix products of warpgroups (wgmma): sm_90a.
//
// A block has three warpgroups. One warp of the first keeps the copy engine busy; the other two
// have 64 rows of the tile each. For a tile of 128 keys and head_dim 128 a block does 8.4 MFLOP on
// 64 KB of keys and values: at 600 TFLOP/s of the whole device (4.5 a multiprocessor) that is 1.85
// us a tile, and 4.7 TB/s of loads, as much as the device memory gives; but blocks of the same KV
// head run side by side, so most of them come out of the L2.
//
// Shared memory for head_dim 128: 32 KB of queries, and 3 stages of 32 KB each for keys and for
// values: 224 KB of 227. Up to 192 KB are in flight; two tiles' time, 3.7 us, hides the latency of
// device memory and of the block table. All lie in rows of 128 bytes with the 128-byte swizzle that
// wgmma reads without bank conflicts; a row of 128 elements is cut into halves of 64, one after the
// other. Keys are wgmma's B with k along the rows, values with k down them.
//
// Registers: 168 a thread at launch, then 40 for the copying warpgroup and 232 for the others,
// which hold 64 scores, 64 outputs and 32 of packed probabilities.
//
// While a warpgroup works on the softmax of a tile (64 exponentials a thread at 16 a clock and
// multiprocessor: 1024 clocks for both warpgroups, against 2048 of products), its product of the
// tile before with the values is still under way, and so are those of the other warpgroup: the two
// take turns to start their products (named barriers), so that one's softmax falls into the other's
// products.
#pragma once

#include <cstdint>

#include "cuda/kernels/prefill_attention_tile.cuh"
#include "cuda/kernels/ptx.cuh"

namespace tidal::cuda::prefill {

inline constexpr int kWarpgroupThreads = 128;
inline constexpr int kConsumers = 2;  // warpgroups
inline constexpr int kConsumerRows = 64;
static_assert(kConsumers * kConsumerRows == kPrefillTileRows);
inline constexpr int kWarpgroupKernelThreads = (1 + kConsumers) * kWarpgroupThreads;
inline constexpr int kConsumerWarps = kConsumers * kWarpgroupThreads / kWarpSize;

inline constexpr int kProducerRegisters = 40;
inline constexpr int kConsumerRegisters = 232;

inline constexpr int kKeys = 128;         // of a tile
inline constexpr int kHalfElements = 64;  // 128 bytes
inline constexpr int kSwizzledRow = 128;  // bytes
inline constexpr int kRowGroupBytes = 8 * kSwizzledRow;
inline constexpr int kHalfBytes = kKeys * kSwizzledRow;  // of a tile of keys, values or queries
inline constexpr int kBoxBytes = kBlockSize * kSwizzledRow;
inline constexpr int kStepBytes = 32;  // of 16 elements along a row
static_assert(kPrefillTileRows == kKeys);

// Named barriers; 0 is __syncthreads.
inline constexpr int kTurnBarrier = 1;      // and 2: of each consumer
inline constexpr int kConsumerBarrier = 3;  // and 4

template <int kHeadDim>
struct WarpgroupShape {
  static constexpr int kHalves = kHeadDim / kHalfElements;
  static constexpr int kTileBytes = kHalves * kHalfBytes;
  static constexpr int kStages = kHeadDim == 64 ? 4 : 3;
  static constexpr int kSharedBytes = (1 + 2 * kStages) * kTileBytes + 4 * kStages * kBarrierBytes;
  static_assert(kSharedBytes <= (227 << 10));
};

template <typename T>
struct WarpgroupParameters {
  Parameters<T> attention;
  CUtensorMap cache_map;
};

#ifdef TIDAL_WARPGROUP_MMA

// The stages of keys, or of values.
template <int kHeadDim>
struct StageRing {
  using Shape = WarpgroupShape<kHeadDim>;

  uint32_t stages;
  uint32_t barriers;  // full ones, empty ones

  __device__ uint32_t stage(int index) const { return stages + index * Shape::kTileBytes; }
  __device__ uint32_t full(int index) const { return barriers + index * kBarrierBytes; }
  __device__ uint32_t empty(int index) const { return full(Shape::kStages + index); }

  // By one thread.
  __device__ void Init() const {
    for (int i = 0; i < Shape::kStages; ++i) {
      InitBarrier(full(i), 1);
      InitBarrier(empty(i), kConsumerWarps);
    }
  }
};

// A place in a ring that is gone round again and again.
template <int kStages>
struct StageCursor {
  int index = 0;
  uint32_t parity = 0;

  __device__ void Advance() {
    if (++index < kStages) return;
    index = 0;
    parity ^= 1;
  }
};

template <int kHeadDim>
struct SharedLayout {
  using Shape = WarpgroupShape<kHeadDim>;

  uint32_t queries;
  StageRing<kHeadDim> keys;
  StageRing<kHeadDim> values;

  __device__ explicit SharedLayout(uint32_t shared) {
    constexpr uint32_t kRingBytes = Shape::kStages * Shape::kTileBytes;
    const uint32_t barriers = shared + Shape::kTileBytes + 2 * kRingBytes;
    queries = shared;
    keys = {shared + Shape::kTileBytes, barriers};
    values = {keys.stages + kRingBytes, barriers + 2 * Shape::kStages * kBarrierBytes};
  }
};

// The copying warp: tiles from the last to the first, keys before values. Each lane copies one half
// of one block's 16 keys, or values.
template <int kHeadDim>
__device__ void CopyTiles(const CUtensorMap& cache_map, int32_t num_kv_heads, const QueryTile& tile,
                          const SharedLayout<kHeadDim>& shared) {
  using Shape = WarpgroupShape<kHeadDim>;
  constexpr int kBlocks = kKeys / kBlockSize;
  constexpr int kCopies = kBlocks * Shape::kHalves;  // of keys; as many of values
  static_assert(2 * kCopies <= kWarpSize);
  const int lane = static_cast<int>(threadIdx.x);
  const int block = lane % kBlocks;
  const int half = lane / kBlocks % Shape::kHalves;
  const bool copies_keys = lane < kCopies;
  const bool copies_values = !copies_keys && lane < 2 * kCopies;
  const uint32_t offset = half * kHalfBytes + block * kBoxBytes;
  const int32_t num_keys = tile.num_keys();
  // The lane's block of a tile; -1 past the last one, and before the first one.
  const auto cache_block = [&](int32_t key_tile) {
    const int32_t index = key_tile * kBlocks + block;
    return key_tile >= 0 && index * kBlockSize < num_keys ? __ldcg(tile.block_table + index) : -1;
  };
  StageCursor<Shape::kStages> cursor;
  int32_t key_tile = (num_keys - 1) / kKeys;
  int32_t next_block = cache_block(key_tile);
  for (; key_tile >= 0; --key_tile) {
    // Rows outside of the cache become zeros.
    const int32_t row =
        next_block < 0
            ? -kBlockSize
            : ((next_block * 2 + (copies_keys ? 0 : 1)) * num_kv_heads + tile.kv_head) * kBlockSize;
    next_block = cache_block(key_tile - 1);
    for (const bool is_keys : {true, false}) {
      const StageRing<kHeadDim>& ring = is_keys ? shared.keys : shared.values;
      WaitForBarrier(ring.empty(cursor.index), cursor.parity ^ 1);
      if (lane == 0) ArriveAndExpectBytes(ring.full(cursor.index), Shape::kTileBytes);
      __syncwarp();
      if (is_keys ? copies_keys : copies_values) {
        CopyTensorBox(ring.stage(cursor.index) + offset, &cache_map, half * kHalfElements, row,
                      ring.full(cursor.index));
      }
    }
    cursor.Advance();
  }
}

// A consumer's 64 queries into shared memory; what stands for missing rows is the last one.
template <typename T, int kHeadDim>
__device__ void LoadQueriesToShared(const T* query, const QueryTile& tile, int consumer,
                                    char* queries) {
  constexpr int kPieces = kHeadDim / 8;  // 16 bytes each
  constexpr int kRowsAtOnce = kWarpgroupThreads / kPieces;
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroupThreads;
  const int piece = thread % kPieces;
  char* half = queries + piece / 8 * kHalfBytes;
#pragma unroll
  for (int i = 0; i < kConsumerRows / kRowsAtOnce; ++i) {
    const int row = consumer * kConsumerRows + i * kRowsAtOnce + thread / kPieces;
    const T* source = query + tile.Offset(row, kHeadDim) + piece * 8;
    *reinterpret_cast<uint4*>(half + row * kSwizzledRow + (piece % 8 ^ row % 8) * 16) =
        __ldcg(reinterpret_cast<const uint4*>(source));
  }
  FenceSharedForAsync();
  SyncNamedBarrier(kConsumerBarrier + consumer, kWarpgroupThreads);
}

// One of the two warpgroups that compute.
template <typename T, int kHeadDim>
class Consumer {
 public:
  using Shape = WarpgroupShape<kHeadDim>;

  __device__ Consumer(const Parameters<T>& parameters, const QueryTile& tile,
                      const SharedLayout<kHeadDim>& shared, int consumer)
      : tile_(tile), shared_(shared), consumer_(consumer), scale_log2_(parameters.scale_log2) {
    const int thread = static_cast<int>(threadIdx.x) % kWarpgroupThreads;
    warp_row_ = consumer * kConsumerRows + thread / kWarpSize * 16;
    const int32_t row = warp_row_ + thread % kWarpSize / 4;
    last_position_[0] = tile.Position(row);
    last_position_[1] = tile.Position(row + 8);
  }

  __device__ void Run(T* output, char* values) {
    const int32_t num_keys = tile_.num_keys();
    const int32_t last_tile = (num_keys - 1) / kKeys;
    const int32_t num_whole_tiles = tile_.num_common_keys() / kKeys;
    if (consumer_ == 1) PassTurn();  // the first consumer begins
    StartTurn();
    StartScores();
    PassTurn();
    FinishScores<0>();
    float correction[2];
    MaskScores(scores_, last_tile * kKeys, last_position_);
    softmax_.template Add<true>(scores_, scale_log2_, correction);
    PackProbabilities<T>(scores_, probabilities_);
    ClearValues(num_keys, last_tile, values);
    int32_t key_tile = last_tile - 1;
    for (; key_tile >= num_whole_tiles; --key_tile) AddTile<true>(key_tile);
    for (; key_tile >= 0; --key_tile) AddTile<false>(key_tile);
    StartTurn();
    StartOutput();
    if (consumer_ == 0) PassTurn();
    WaitForWarpgroupProducts<0>(output_);
    StoreOutput(tile_, warp_row_, output, softmax_, output_);
  }

 private:
  static constexpr int kScoreColumns = kKeys / 8;
  static constexpr int kOutputColumns = kHeadDim / 8;

  // This consumer's turn to start products, and the other's from now on.
  __device__ void StartTurn() const {
    SyncNamedBarrier(kTurnBarrier + consumer_, kConsumers * kWarpgroupThreads);
  }
  __device__ void PassTurn() const {
    ArriveAtNamedBarrier(kTurnBarrier + (consumer_ ^ 1), kConsumers * kWarpgroupThreads);
  }

  __device__ static void Release(uint32_t empty) {
    __syncwarp();
    if (threadIdx.x % kWarpSize == 0) ArriveBarrier(empty);
  }

  // Starts queries times the next tile of keys, once it is there.
  __device__ void StartScores() {
    WaitForBarrier(shared_.keys.full(key_cursor_.index), key_cursor_.parity);
    const uint32_t queries = shared_.queries + consumer_ * (kConsumerRows * kSwizzledRow);
    const uint32_t keys = shared_.keys.stage(key_cursor_.index);
    BeginWarpgroupProducts(scores_);
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
      const uint32_t offset = step / 4 * kHalfBytes + step % 4 * kStepBytes;
      WarpgroupMultiply<T>(scores_, DescribeMatrix(queries + offset, 0, kRowGroupBytes),
                           DescribeMatrix(keys + offset, 0, kRowGroupBytes), step > 0);
    }
    CommitWarpgroupProducts();
  }

  // Waits for the scores; kNumGroups groups of products started after them may go on.
  template <int kNumGroups>
  __device__ void FinishScores() {
    WaitForWarpgroupProducts<kNumGroups>(scores_);
    Release(shared_.keys.empty(key_cursor_.index));
    key_cursor_.Advance();
  }

  // Starts probabilities times the next tile of values, which is there.
  __device__ void StartOutput() {
    const uint32_t values = shared_.values.stage(value_cursor_.index);
    BeginWarpgroupProducts(output_);
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
      WarpgroupAccumulate<T>(
          output_, probabilities_[step],
          DescribeMatrix(values + step * 2 * kRowGroupBytes, kHalfBytes, kRowGroupBytes));
    }
    CommitWarpgroupProducts();
  }

  // The scores of a tile, while the tile after it is multiplied with its values.
  template <bool kMasked>
  __device__ void AddTile(int32_t key_tile) {
    StartTurn();
    StartScores();
    StartOutput();
    PassTurn();
    FinishScores<1>();
    if constexpr (kMasked) MaskScores(scores_, key_tile * kKeys, last_position_);
    float correction[2];
    softmax_.template Add<kMasked>(scores_, scale_log2_, correction);
    const uint32_t read_values = shared_.values.empty(value_cursor_.index);
    value_cursor_.Advance();
    // Here, before it is needed, since the compiler moves nothing across its loop: the exponentials
    // stay in front of the wait for the products.
    WaitForBarrier(shared_.values.full(value_cursor_.index), value_cursor_.parity);
    WaitForWarpgroupProducts<0>(output_);
    Release(read_values);
    Scale(output_, correction);
    PackProbabilities<T>(scores_, probabilities_);
  }

  // The last block's tokens past the last key: nobody may have written them, and 0 * NaN is NaN.
  // Both consumers write the same zeros, each before it reads them.
  __device__ void ClearValues(int32_t num_keys, int32_t last_tile, char* values) const {
    constexpr int kPieces = kHeadDim / 8;
    const int thread = static_cast<int>(threadIdx.x) % kWarpgroupThreads;
    const int32_t first = num_keys - last_tile * kKeys;
    const int32_t num_pieces = (kBlockSize - num_keys % kBlockSize) % kBlockSize * kPieces;
    WaitForBarrier(shared_.values.full(0), 0);
    for (int32_t i = thread; i < num_pieces; i += kWarpgroupThreads) {
      const int32_t row = first + i / kPieces;
      const int32_t piece = i % kPieces;  // the swizzle keeps a row's pieces in the row
      *reinterpret_cast<uint4*>(values + piece / 8 * kHalfBytes + row * kSwizzledRow +
                                piece % 8 * 16) = uint4{};
    }
    FenceSharedForAsync();
    SyncNamedBarrier(kConsumerBarrier + consumer_, kWarpgroupThreads);
  }

  const QueryTile& tile_;
  const SharedLayout<kHeadDim>& shared_;
  int consumer_;
  float scale_log2_;
  int32_t warp_row_;
  int32_t last_position_[2];
  StageCursor<Shape::kStages> key_cursor_;
  StageCursor<Shape::kStages> value_cursor_;
  RunningSoftmax softmax_;
  float scores_[kScoreColumns][4] = {};
  float output_[kOutputColumns][4] = {};
  uint32_t probabilities_[kKeys / 16][4];
};

#endif  // TIDAL_WARPGROUP_MMA

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kWarpgroupKernelThreads, 1)
    PrefillWarpgroupKernel(const __grid_constant__ WarpgroupParameters<T> parameters) {
#ifdef TIDAL_WARPGROUP_MMA
  using Shape = WarpgroupShape<kHeadDim>;
  char* memory = DynamicSharedMemory();
  const SharedLayout<kHeadDim> shared(SharedAddress(memory));
  LetNextKernelStart();
  if (threadIdx.x == 0) {
    PrefetchTensorMap(&parameters.cache_map);
    shared.keys.Init();
    shared.values.Init();
    FenceBarrierInit();
  }
  __syncthreads();
  WaitForPreviousKernels();
  const int warpgroup = static_cast<int>(threadIdx.x) / kWarpgroupThreads;
  if (warpgroup == 0) {
    LowerRegisters<kProducerRegisters>();
    if (threadIdx.x < kWarpSize) {
      const QueryTile tile(parameters.attention);
      CopyTiles(parameters.cache_map, parameters.attention.cache.num_kv_heads, tile, shared);
    }
  } else {
    RaiseRegisters<kConsumerRegisters>();
    const QueryTile tile(parameters.attention);
    LoadQueriesToShared<T, kHeadDim>(parameters.attention.query, tile, warpgroup - 1, memory);
    Consumer<T, kHeadDim> consumer(parameters.attention, tile, shared, warpgroup - 1);
    consumer.Run(parameters.attention.output, memory + (1 + Shape::kStages) * Shape::kTileBytes);
  }
#else
  __trap();  // InitPrefillAttention chooses this kernel only where it was compiled
#endif
}

}  // namespace tidal::cuda::prefill
