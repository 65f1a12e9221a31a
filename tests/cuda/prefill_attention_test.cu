// Prefill attention against float64 on the CPU: chunks of odd lengths at odd places, all group
// sizes, several chunks in a step, blocks in any order. What no row attends is NaN in the cache.

#include "cuda/kernels/prefill_attention.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

namespace tidal::cuda {
namespace {

#define ASSERT_CUDA_OK(expression) ASSERT_EQ(cudaSuccess, (expression))

bool HasDevice() {
  int num_devices = 0;
  return cudaGetDeviceCount(&num_devices) == cudaSuccess && num_devices > 0;
}

size_t Size(int64_t size) { return static_cast<size_t>(size); }

template <typename T>
class DeviceArray {
 public:
  DeviceArray(const std::vector<T>& elements, cudaStream_t stream)
      : size_(elements.size()), stream_(stream) {
    EXPECT_EQ(cudaSuccess, cudaMalloc(&elements_, std::max<size_t>(size_, 1) * sizeof(T)));
    EXPECT_EQ(cudaSuccess, cudaMemcpyAsync(elements_, elements.data(), size_ * sizeof(T),
                                           cudaMemcpyHostToDevice, stream));
    EXPECT_EQ(cudaSuccess, cudaStreamSynchronize(stream));
  }
  ~DeviceArray() { cudaFree(elements_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* get() const { return elements_; }
  void Poison() {
    EXPECT_EQ(cudaSuccess, cudaMemsetAsync(elements_, 0xFF, size_ * sizeof(T), stream_));
  }
  std::vector<T> Read() const {
    std::vector<T> elements(size_);
    EXPECT_EQ(cudaSuccess, cudaMemcpyAsync(elements.data(), elements_, size_ * sizeof(T),
                                           cudaMemcpyDeviceToHost, stream_));
    EXPECT_EQ(cudaSuccess, cudaStreamSynchronize(stream_));
    return elements;
  }

 private:
  size_t size_;
  cudaStream_t stream_;
  T* elements_ = nullptr;
};

// The lengths of a chunk.
struct Chunk {
  int32_t num_tokens;
  int32_t num_context_tokens;
};

// The model and the chunks of a step.
struct Case {
  int32_t head_dim;
  int32_t num_kv_heads;
  int32_t group_size;
  std::vector<Chunk> chunks;
  float scale = 2.0f;  // of queries and keys

  ModelDims dims() const {
    ModelDims dims = {};
    dims.num_query_heads = num_kv_heads * group_size;
    dims.num_kv_heads = num_kv_heads;
    dims.head_dim = head_dim;
    return dims;
  }
  int32_t num_rows() const {
    return std::accumulate(chunks.begin(), chunks.end(), 0,
                           [](int32_t sum, const Chunk& chunk) { return sum + chunk.num_tokens; });
  }
};

std::string Describe(const Case& test) {
  std::string text = "head_dim " + std::to_string(test.head_dim) + ", group size " +
                     std::to_string(test.group_size) + ", KV heads " +
                     std::to_string(test.num_kv_heads);
  for (const Chunk& chunk : test.chunks) {
    text += ", " + std::to_string(chunk.num_tokens) + " of " +
            std::to_string(chunk.num_context_tokens) + " tokens";
  }
  return text;
}

// A step's queries and cache on the host, blocks in random order, with blocks that nobody has.
template <typename T>
struct Problem {
  explicit Problem(const Case& test_in) : test(test_in), dims(test.dims()) {
    constexpr int32_t kUnusedBlocks = 3;
    int32_t num_context_blocks = 0;
    for (const Chunk& chunk : test.chunks) {
      const int32_t size = (chunk.num_context_tokens + kBlockSize - 1) / kBlockSize;
      num_context_blocks += size;
      block_table_stride = std::max(block_table_stride, size + 2);
    }
    num_blocks = num_context_blocks + kUnusedBlocks;
    std::vector<int32_t> free_blocks(Size(num_blocks));
    std::iota(free_blocks.begin(), free_blocks.end(), 0);
    std::shuffle(free_blocks.begin(), free_blocks.end(), random);
    // Sampler slots stand in another order than chunks.
    const auto num_chunks = static_cast<int32_t>(test.chunks.size());
    block_tables.assign(Size(num_chunks) * Size(block_table_stride), -1);
    cache.resize(Size(num_blocks) * Size(view().block_stride()));
    std::memset(static_cast<void*>(cache.data()), 0xFF, cache.size() * sizeof(T));
    int32_t first_row = 0;
    for (int32_t i = 0; i < num_chunks; ++i) {
      const Chunk& lengths = test.chunks[Size(i)];
      DeviceChunk chunk = {};
      chunk.first_row = first_row;
      chunk.num_tokens = lengths.num_tokens;
      chunk.num_context_tokens = lengths.num_context_tokens;
      chunk.sampler_slot = num_chunks - 1 - i;
      first_row += lengths.num_tokens;
      for (int32_t position = 0; position < lengths.num_context_tokens; ++position) {
        int32_t& block =
            block_tables[Size(chunk.sampler_slot * block_table_stride + position / kBlockSize)];
        if (block < 0) {
          block = free_blocks.back();
          free_blocks.pop_back();
        }
        FillToken(block * kBlockSize + position % kBlockSize);
      }
      chunks.push_back(chunk);
    }
    query.resize(Size(first_row) * Size(dims.query_size()));
    for (T& element : query) element = Uniform(test.scale);
  }

  KvCacheView<T> view() const { return {nullptr, test.num_kv_heads, test.head_dim}; }

  T Uniform(float scale) {
    return static_cast<T>(std::uniform_real_distribution<float>(-scale, scale)(random));
  }

  void FillToken(int32_t cache_row) {
    for (int32_t head = 0; head < test.num_kv_heads; ++head) {
      T* key = cache.data() + view().key_offset(cache_row, head);
      for (int32_t i = 0; i < test.head_dim; ++i) {
        key[i] = Uniform(test.scale);
        key[view().value_offset() + i] = Uniform(1.0f);
      }
    }
  }

  const T* Key(const DeviceChunk& chunk, int32_t position, int32_t kv_head) const {
    const int32_t block =
        block_tables[Size(chunk.sampler_slot * block_table_stride + position / kBlockSize)];
    return cache.data() + view().key_offset(block * kBlockSize + position % kBlockSize, kv_head);
  }

  // One query's attention in float64.
  std::vector<double> Reference(const DeviceChunk& chunk, int32_t token, int32_t head) const {
    const int32_t head_dim = test.head_dim;
    const int32_t num_keys = chunk.num_context_tokens - chunk.num_tokens + token + 1;
    const T* row = query.data() + Size(chunk.first_row + token) * Size(dims.query_size()) +
                   Size(head) * Size(head_dim);
    std::vector<double> scores;
    for (int32_t position = 0; position < num_keys; ++position) {
      const T* key = Key(chunk, position, head / test.group_size);
      double sum = 0.0;
      for (int32_t i = 0; i < head_dim; ++i) {
        sum += static_cast<double>(static_cast<float>(row[i])) *
               static_cast<double>(static_cast<float>(key[i]));
      }
      scores.push_back(sum / std::sqrt(static_cast<double>(head_dim)));
    }
    const double greatest = *std::max_element(scores.begin(), scores.end());
    double total = 0.0;
    std::vector<double> output(Size(head_dim));
    for (int32_t position = 0; position < num_keys; ++position) {
      const double weight = std::exp(scores[Size(position)] - greatest);
      const T* value = Key(chunk, position, head / test.group_size) + view().value_offset();
      total += weight;
      for (int32_t i = 0; i < head_dim; ++i) {
        output[Size(i)] += weight * static_cast<double>(static_cast<float>(value[i]));
      }
    }
    for (double& element : output) element /= total;
    return output;
  }

  Case test;
  ModelDims dims;
  std::mt19937 random{7};
  int32_t num_blocks = 0;
  int32_t block_table_stride = 0;
  std::vector<int32_t> block_tables;
  std::vector<DeviceChunk> chunks;
  std::vector<T> cache;
  std::vector<T> query;
};

template <typename T>
class PrefillAttentionTest : public testing::Test {
 protected:
  // Of probabilities and outputs rounded to T: measured 2.0e-3 and 2.6e-4 at most.
  static constexpr double kTolerance = std::is_same_v<T, __half> ? 5e-4 : 4e-3;

  void SetUp() override {
    if (!HasDevice()) GTEST_SKIP() << "no CUDA device";
    ASSERT_CUDA_OK(cudaStreamCreate(&stream_));
    ASSERT_CUDA_OK(InitPrefillAttention(&device_));
  }
  void TearDown() override {
    if (stream_ == nullptr) return;
    EXPECT_EQ(cudaSuccess, cudaStreamDestroy(stream_));
  }

  // The ways that this device can take.
  std::vector<PrefillAttentionDevice> Ways() const {
    std::vector<PrefillAttentionDevice> ways = {PrefillAttentionDevice{}};
    if (device_.has_warpgroup_mma) ways.push_back(device_);
    return ways;
  }

  // [num_rows][query_size]; poisoned before.
  std::vector<T> Run(const PrefillAttentionDevice& device, const Problem<T>& problem,
                     bool dependent) {
    const DeviceArray<T> query(problem.query, stream_);
    const DeviceArray<T> cache(problem.cache, stream_);
    const DeviceArray<DeviceChunk> chunks(problem.chunks, stream_);
    const DeviceArray<int32_t> block_tables(problem.block_tables, stream_);
    DeviceArray<T> output(problem.query, stream_);
    output.Poison();
    const auto num_chunks = static_cast<int32_t>(problem.chunks.size());
    std::vector<PrefillTile> host_tiles(
        Size(MaxPrefillTiles(problem.test.num_rows(), num_chunks, problem.test.group_size)));
    const int32_t num_tiles = BuildPrefillTiles(problem.chunks.data(), num_chunks,
                                                problem.test.group_size, host_tiles.data());
    const DeviceArray<PrefillTile> tiles(host_tiles, stream_);
    PrefillAttention<T> arguments = {};
    arguments.query = query.get();
    arguments.output = output.get();
    arguments.cache = {cache.get(), problem.test.num_kv_heads, problem.test.head_dim};
    CUtensorMap map;
    if (device.has_warpgroup_mma) {
      EXPECT_EQ(cudaSuccess, MakePrefillCacheMap(arguments.cache, problem.num_blocks, &map));
      arguments.cache_map = &map;
    }
    arguments.step.chunks = chunks.get();
    arguments.step.block_tables = block_tables.get();
    arguments.step.block_table_stride = problem.block_table_stride;
    arguments.tiles = tiles.get();
    arguments.num_tiles = num_tiles;
    EXPECT_EQ(cudaSuccess,
              LaunchPrefillAttention<T>({device, stream_, dependent}, problem.dims, arguments));
    return output.Read();
  }

  void Check(const Problem<T>& problem, const std::vector<T>& output) {
    for (const DeviceChunk& chunk : problem.chunks) {
      double difference = 0.0;
      double norm = 0.0;
      for (int32_t token = 0; token < chunk.num_tokens; ++token) {
        for (int32_t head = 0; head < problem.dims.num_query_heads; ++head) {
          const T* actual = output.data() +
                            Size(chunk.first_row + token) * Size(problem.dims.query_size()) +
                            Size(head) * Size(problem.dims.head_dim);
          if (chunk.num_tokens == 1) {
            ASSERT_TRUE(std::isnan(static_cast<float>(actual[0]))) << "a decode was written to";
            continue;
          }
          const std::vector<double> expected = problem.Reference(chunk, token, head);
          for (size_t i = 0; i < expected.size(); ++i) {
            const double error = static_cast<double>(static_cast<float>(actual[i])) - expected[i];
            ASSERT_LT(std::abs(error), 8 * kTolerance)
                << "row " << chunk.first_row + token << ", head " << head << ", element " << i;
            difference += error * error;
            norm += expected[i] * expected[i];
          }
        }
      }
      if (chunk.num_tokens == 1) continue;
      EXPECT_LT(std::sqrt(difference / norm), kTolerance);
    }
  }

  void CheckCases(const std::vector<Case>& cases) {
    for (const Case& test : cases) {
      const Problem<T> problem(test);
      for (const PrefillAttentionDevice& way : Ways()) {
        SCOPED_TRACE(Describe(test) + (way.has_warpgroup_mma ? ", warpgroups" : ", warps"));
        Check(problem, Run(way, problem, /*dependent=*/true));
        if (this->HasFatalFailure()) return;
      }
    }
  }

  PrefillAttentionDevice device_;
  cudaStream_t stream_ = nullptr;
};

using ElementTypes = testing::Types<__nv_bfloat16, __half>;
TYPED_TEST_SUITE(PrefillAttentionTest, ElementTypes);

TYPED_TEST(PrefillAttentionTest, ChunksOfOddLengthsAreRight) {
  this->CheckCases({
      {128, 1, 1, {{2, 2}, {5, 21}, {77, 77}}},
      {128, 2, 1, {{130, 333}}},
      {64, 1, 1, {{3, 17}, {129, 129}, {31, 32}}},
      {64, 2, 1, {{50, 447}}},
  });
}

TYPED_TEST(PrefillAttentionTest, ChunksOfWholeTilesAreRight) {
  this->CheckCases({
      {128, 1, 1, {{128, 128}, {128, 256}, {16, 16}, {64, 192}}},
      {64, 1, 4, {{32, 128}, {64, 64}}},
  });
}

TYPED_TEST(PrefillAttentionTest, AllGroupSizesAreRight) {
  for (int32_t group_size = 1; group_size <= kMaxPrefillGroupSize; ++group_size) {
    this->CheckCases({{64, 2, group_size, {{29, 75}}}});
    if (this->HasFatalFailure()) return;
  }
  this->CheckCases({{128, 2, 4, {{45, 300}}}, {128, 1, 7, {{37, 150}}}});
}

TYPED_TEST(PrefillAttentionTest, LeavesDecodesOfTheStepAlone) {
  this->CheckCases({{128, 2, 2, {{1, 40}, {33, 100}, {1, 1}, {4, 4}}}});
}

TYPED_TEST(PrefillAttentionTest, ScoresFarApartAreRight) {
  this->CheckCases({{128, 1, 1, {{20, 270}}, 8.0f}, {64, 1, 2, {{20, 140}}, 8.0f}});
}

#ifndef TIDAL_EMULATED
TYPED_TEST(PrefillAttentionTest, LongChunksAreRight) {
  this->CheckCases({{128, 2, 1, {{300, 20011}, {513, 1000}}},
                    {128, 2, 4, {{200, 9001}, {1, 5000}, {257, 3000}}},
                    {64, 2, 8, {{100, 12345}}}});
}
#endif

TYPED_TEST(PrefillAttentionTest, AChunksResultDependsOnItAlone) {
  const Case alone = {128, 2, 2, {{70, 205}}};
  const Case together = {128, 2, 2, {{70, 205}, {3, 300}, {90, 90}}};
  for (const PrefillAttentionDevice& way : this->Ways()) {
    const auto expected = this->Run(way, Problem<TypeParam>(alone), /*dependent=*/false);
    Problem<TypeParam> problem(together);
    // The same chunk: its queries and keys are copied, wherever its blocks are now.
    const Problem<TypeParam> source(alone);
    std::copy(source.query.begin(), source.query.end(), problem.query.begin());
    for (int32_t position = 0; position < 205; ++position) {
      for (int32_t head = 0; head < 2; ++head) {
        const TypeParam* from = source.Key(source.chunks[0], position, head);
        auto* to = const_cast<TypeParam*>(problem.Key(problem.chunks[0], position, head));
        std::copy_n(from, 128, to);
        std::copy_n(from + source.view().value_offset(), 128, to + problem.view().value_offset());
      }
    }
    const auto actual = this->Run(way, problem, /*dependent=*/true);
    EXPECT_EQ(0, std::memcmp(expected.data(), actual.data(), expected.size() * sizeof(TypeParam)));
    const auto repeated = this->Run(way, problem, /*dependent=*/true);
    EXPECT_EQ(0, std::memcmp(actual.data(), repeated.data(), actual.size() * sizeof(TypeParam)));
  }
}

TEST(PrefillTilesTest, CoverEveryRowOnceLongestFirst) {
  std::vector<DeviceChunk> chunks(4);
  const Chunk lengths[] = {{100, 5000}, {1, 90000}, {300, 300}, {2, 9000}};
  for (size_t i = 0; i < chunks.size(); ++i) {
    chunks[i].num_tokens = lengths[i].num_tokens;
    chunks[i].num_context_tokens = lengths[i].num_context_tokens;
  }
  constexpr int32_t kGroupSize = 3;
  std::vector<PrefillTile> tiles(Size(MaxPrefillTiles(403, 4, kGroupSize)));
  ASSERT_EQ(3 + 8 + 1, BuildPrefillTiles(chunks.data(), 4, kGroupSize, tiles.data()));
  EXPECT_EQ(3, tiles[0].chunk);
  EXPECT_EQ(0, tiles[0].first_row);
  EXPECT_EQ(0, tiles[1].chunk);
  EXPECT_EQ(2 * kPrefillTileRows, tiles[1].first_row);
  EXPECT_EQ(0, tiles[3].first_row);
  EXPECT_EQ(2, tiles[4].chunk);
  EXPECT_EQ(7 * kPrefillTileRows, tiles[4].first_row);
  EXPECT_EQ(0, tiles[11].first_row);
  EXPECT_EQ(0, BuildPrefillTiles(chunks.data() + 1, 1, kGroupSize, tiles.data()));
}

TEST(PrefillSupportsTest, RefusesWhatTheLaunchCannotDo) {
  EXPECT_TRUE(SupportsPrefillAttention(Case{128, 8, 4, {}}.dims()));
  EXPECT_TRUE(SupportsPrefillAttention(Case{64, 1, 8, {}}.dims()));
  EXPECT_FALSE(SupportsPrefillAttention(Case{96, 8, 4, {}}.dims()));
  EXPECT_FALSE(SupportsPrefillAttention(Case{128, 1, 9, {}}.dims()));
  EXPECT_EQ(cudaErrorInvalidValue,
            LaunchPrefillAttention<__half>({}, Case{128, 8, 4, {}}.dims(), {}));
}

}  // namespace
}  // namespace tidal::cuda
