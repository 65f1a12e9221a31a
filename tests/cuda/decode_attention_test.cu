// Context attention, selection and sparse attention (decode_attention.h) against float64 on the
// CPU: groups of 1 to 8 heads, contexts around blocks, mixed batches, ties, launches in parts and
// in graphs.

#include "cuda/kernels/decode_attention.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <type_traits>
#include <vector>

#include "tests/cuda/decode_attention_step.h"

namespace tidal::cuda {
namespace {

#if defined(TIDAL_EMULATED)
constexpr int32_t kLongContext = 106'003;  // more than four blocks' shared memory holds
#else
constexpr int32_t kLongContext = 230'003;  // more than eight blocks' shared memory holds
#endif

// ||actual - expected|| / ||expected||; NaN where anything is.
double RelativeError(const std::vector<double>& actual, const std::vector<double>& expected) {
  EXPECT_EQ(actual.size(), expected.size());
  double difference = 0.0;
  double norm = 0.0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(difference / norm);
}

std::vector<std::vector<int32_t>> AllPositions(const ModelDims& dims, int32_t context) {
  std::vector<int32_t> positions(Size(context));
  std::iota(positions.begin(), positions.end(), 0);
  return std::vector<std::vector<int32_t>>(Size(dims.num_query_heads), positions);
}

// The set of each query head.
std::vector<std::vector<int32_t>> OfHeads(const ModelDims& dims,
                                          const std::vector<std::vector<int32_t>>& sets) {
  std::vector<std::vector<int32_t>> result;
  for (size_t head = 0; head < Size(dims.num_query_heads); ++head) {
    result.push_back(sets[head * sets.size() / Size(dims.num_query_heads)]);
  }
  return result;
}

// [set][position]: the pooled scores of engine/backend/attention.h.
std::vector<std::vector<double>> Pool(const ModelDims& dims, SelectionScope scope,
                                      const std::vector<std::vector<double>>& scores) {
  if (scope == SelectionScope::kQueryHead) return scores;
  const size_t num_sets = scope == SelectionScope::kKvHead ? Size(dims.num_kv_heads) : 1;
  std::vector<std::vector<double>> pooled(num_sets, std::vector<double>(scores[0].size()));
  for (size_t head = 0; head < scores.size(); ++head) {
    std::vector<double>& set = pooled[head * num_sets / scores.size()];
    const double max = *std::max_element(scores[head].begin(), scores[head].end());
    double sum = 0.0;
    for (const double score : scores[head]) sum += std::exp(score - max);
    for (size_t t = 0; t < set.size(); ++t) {
      const double p = std::exp(scores[head][t] - max) / sum;
      set[t] = scope == SelectionScope::kKvHead ? set[t] + p : std::max(set[t], p);
    }
  }
  return pooled;
}

// The set that the contract asks for, by these scores.
std::vector<int32_t> Pick(const DeviceChunk& chunk, const std::vector<double>& scores) {
  const int32_t context = chunk.num_context_tokens;
  const int32_t first_recent = context - std::max(chunk.num_recent_tokens, 1);
  std::vector<int32_t> order(Size(context));
  std::iota(order.begin(), order.end(), 0);
  const auto kept = [&](int32_t t) { return t < chunk.num_sink_tokens || t >= first_recent; };
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return kept(a) != kept(b) ? kept(a) : !kept(a) && scores[Size(a)] > scores[Size(b)];
  });
  order.resize(Size(chunk.token_budget));
  std::sort(order.begin(), order.end());
  return order;
}

// Equal, but for positions whose scores differ from the last one's of the set by `tolerance` of it.
void ExpectSameSet(const DeviceChunk& chunk, const std::vector<double>& scores,
                   const std::vector<int32_t>& actual, double tolerance) {
  const std::vector<int32_t> expected = Pick(chunk, scores);
  ASSERT_EQ(expected.size(), actual.size());
  ASSERT_TRUE(std::is_sorted(actual.begin(), actual.end()));
  ASSERT_EQ(std::adjacent_find(actual.begin(), actual.end()), actual.end());
  const int32_t first_recent = chunk.num_context_tokens - std::max(chunk.num_recent_tokens, 1);
  double threshold = std::numeric_limits<double>::infinity();
  for (const int32_t t : expected) {
    if (t < chunk.num_sink_tokens || t >= first_recent) continue;
    threshold = std::min(threshold, scores[Size(t)]);
  }
  std::vector<int32_t> differing;
  std::set_symmetric_difference(expected.begin(), expected.end(), actual.begin(), actual.end(),
                                std::back_inserter(differing));
  for (const int32_t t : differing) {
    EXPECT_NEAR(scores[Size(t)], threshold, tolerance * std::abs(threshold)) << "position " << t;
  }
}

template <typename T>
class DecodeAttentionTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!HasDevice()) GTEST_SKIP() << "no CUDA device";
  }

  // Of probabilities and outputs rounded to T.
  static constexpr double kTolerance = std::is_same_v<T, __half> ? 1e-3 : 6e-3;
  // Of float32 sums of head_dim exact products, in units of score; and relative to a probability.
  static constexpr double kScoreTolerance = 2e-6;
  static constexpr double kProbabilityTolerance = 2e-5;

  void CheckContext(const Step<T>& step, int32_t index) {
    const int32_t context = step.chunk(index).num_context_tokens;
    const auto expected =
        step.Attend(index, step.Scores(index), AllPositions(step.dims(), context));
    EXPECT_LT(RelativeError(step.Output(index), expected), kTolerance) << "chunk " << index;
  }

  void CheckSelection(const Step<T>& step, int32_t index) {
    const DeviceChunk& chunk = step.chunk(index);
    const auto pooled = Pool(step.dims(), chunk.scope, step.Scores(index));
    const auto selected = step.Selected(index);
    ASSERT_EQ(pooled.size(), selected.size());
    for (size_t set = 0; set < selected.size(); ++set) {
      SCOPED_TRACE(testing::Message() << "chunk " << index << " set " << set);
      ExpectSameSet(
          chunk, pooled[set], selected[set],
          chunk.scope == SelectionScope::kQueryHead ? kScoreTolerance : kProbabilityTolerance);
    }
  }

  void CheckSparse(const Step<T>& step, int32_t index) {
    const auto expected =
        step.Attend(index, step.Scores(index), OfHeads(step.dims(), step.Selected(index)));
    EXPECT_LT(RelativeError(step.Output(index), expected), kTolerance) << "chunk " << index;
  }
};

using ElementTypes = testing::Types<__nv_bfloat16, __half>;
TYPED_TEST_SUITE(DecodeAttentionTest, ElementTypes);

TYPED_TEST(DecodeAttentionTest, AttendsContextsOfAllLengthsInGroupsOfAllSizes) {
  for (const int32_t head_dim : {64, 128}) {
    for (const int32_t group : {1, 2, 3, 4, 5, 6, 7, 8}) {
      const int32_t num_kv_heads = group <= 2 ? 3 : 1;
      SCOPED_TRACE(testing::Message() << "head_dim " << head_dim << ", group " << group);
      std::vector<DeviceChunk> chunks;
      for (const int32_t context : {1, 2, 15, 16, 17, 33, 430}) chunks.push_back(Decode(context));
      Step<TypeParam> step(Dims(group * num_kv_heads, num_kv_heads, head_dim), chunks);
      step.Run(step.Launch(), kSelectPass);
      for (int32_t i = 0; i < step.num_chunks(); ++i) this->CheckContext(step, i);
    }
  }
}

TYPED_TEST(DecodeAttentionTest, SelectsAndAttendsTheSelectionInAllScopes) {
  const SelectionScope scopes[] = {SelectionScope::kQueryHead, SelectionScope::kKvHead,
                                   SelectionScope::kLayer};
  for (const ModelDims& dims : {Dims(2, 2, 128), Dims(6, 2, 64), Dims(8, 1, 128)}) {
    for (const SelectionScope scope : scopes) {
      SCOPED_TRACE(testing::Message() << "query heads " << dims.num_query_heads << ", scope "
                                      << static_cast<int>(scope));
      Step<TypeParam> step(dims, {Tidal(2, scope, 1), Tidal(17, scope, 16), Tidal(300, scope, 1),
                                  Tidal(300, scope, 2, 1), Tidal(300, scope, 299),
                                  Tidal(700, scope, 64, 4, 8), Tidal(500, scope, 12, 4, 8),
                                  Tidal(601, scope, 600, 0, 600), Tidal(301, scope, 17, 16, 1)});
      step.Run(step.Launch(), kSelectPass);
      for (int32_t i = 0; i < step.num_chunks(); ++i) {
        this->CheckContext(step, i);
        this->CheckSelection(step, i);
      }
      step.Run(step.Launch(), kSparsePass);
      for (int32_t i = 0; i < step.num_chunks(); ++i) this->CheckSparse(step, i);
    }
  }
}

TYPED_TEST(DecodeAttentionTest, ServesItsChunksOfAMixedBatchAndNoOthers) {
  DeviceChunk prefill = Decode(50);
  prefill.num_tokens = 20;
  std::vector<DeviceChunk> chunks = {Decode(100),
                                     Tidal(200, SelectionScope::kKvHead, 33, 2, 3),
                                     prefill,
                                     Decode(1),
                                     Decode(30, AttentionMode::kQuest),
                                     Tidal(150, SelectionScope::kQueryHead, 70),
                                     Tidal(90, SelectionScope::kLayer, 5)};
  // More chunks than a warp has lanes.
  for (int32_t i = 0; i < 34; ++i) chunks.push_back(Decode(3 + i));
  Step<TypeParam> step(Dims(4, 2, 64), chunks);
  const std::vector<int32_t> full = {0, 3, 7, 40};
  const std::vector<int32_t> tidal = {1, 5, 6};
  for (const AttentionPass& pass : {kSelectPass, kSparsePass}) {
    step.Run(step.Launch(), pass);
    for (const int32_t i : full) this->CheckContext(step, i);
    for (const int32_t i : tidal) {
      if (pass.kind_of_mode == kSelectPass.kind_of_mode) {
        this->CheckContext(step, i);
        this->CheckSelection(step, i);
      } else {
        this->CheckSparse(step, i);
      }
    }
    const auto output = step.Output();
    for (const int32_t i : {2, 4}) {
      const int64_t first = int64_t{step.chunk(i).first_row} * step.dims().query_size();
      const int64_t size = int64_t{step.chunk(i).num_tokens} * step.dims().query_size();
      for (int64_t j = first; j < first + size; ++j) {
        ASSERT_TRUE(std::isnan(static_cast<float>(output[Size(j)]))) << "wrote chunk " << i;
      }
    }
  }
}

TYPED_TEST(DecodeAttentionTest, BreaksTiesToTheLowerPosition) {
  for (const SelectionScope scope :
       {SelectionScope::kQueryHead, SelectionScope::kKvHead, SelectionScope::kLayer}) {
    for (const int32_t num_distinct : {1, 3, 40}) {
      Step<TypeParam> step(Dims(4, 2, 64), {Tidal(777, scope, 1), Tidal(777, scope, 100)});
      for (int32_t i = 0; i < step.num_chunks(); ++i) step.RepeatKeys(i, num_distinct);
      step.Run(step.Launch(), kSelectPass);
      for (int32_t i = 0; i < step.num_chunks(); ++i) {
        const auto pooled = Pool(step.dims(), scope, step.Scores(i));
        const auto selected = step.Selected(i);
        for (size_t set = 0; set < selected.size(); ++set) {
          EXPECT_EQ(Pick(step.chunk(i), pooled[set]), selected[set])
              << num_distinct << " distinct keys, set " << set;
        }
      }
    }
  }
}

TYPED_TEST(DecodeAttentionTest, AttendsAndSelectsFromALongContext) {
  Step<TypeParam> step(Dims(2, 1, 64), {Tidal(kLongContext, SelectionScope::kKvHead, 512, 4, 32)});
  step.Run(step.Launch(), kSelectPass);
  this->CheckContext(step, 0);
  this->CheckSelection(step, 0);
  step.Run(step.Launch(), kSparsePass);
  this->CheckSparse(step, 0);
}

// Selections from scores that are written into the workspace.
TYPED_TEST(DecodeAttentionTest, PicksExactlyByAnyScores) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0.0f, 5.0f);
  struct Case {
    int32_t context;
    int32_t budget;
    std::vector<float> pool;  // of the scores; empty: normal deviates
    int32_t num_multiprocessors;
  };
  const Case cases[] = {
      {5000, 4096, {}, 0},
      {5000, 512, {1.0f}, 0},
      {5000, 512, {0.0f, -0.0f}, 0},
      {5000, 700, {-1.0f, -1.0000001f, 3e-39f, -3e-39f, 1.0f, 1.0000001f}, 0},
      {5000, 2500, {-kInfinity, kInfinity, 3.0e38f, -3.0e38f, 0.0f}, 0},
      {9001, 2048, {}, 64},  // a cluster of 8
      {kLongContext, 4096, {}, 0},
      {kLongContext, 1000, {2.0f, 2.5f, 1e-3f}, 0},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(testing::Message() << "context " << c.context << ", budget " << c.budget);
    Step<TypeParam> step(Dims(1, 1, 64), {Tidal(c.context, SelectionScope::kQueryHead, c.budget)},
                         1, c.num_multiprocessors);
    std::vector<float> scores(Size(c.context));
    for (float& score : scores) {
      score = c.pool.empty() ? normal(random) : c.pool[random() % c.pool.size()];
    }
    ASSERT_CUDA_OK(cudaMemcpy(step.FirstScores(), scores.data(), scores.size() * sizeof(float),
                              cudaMemcpyHostToDevice));
    ASSERT_CUDA_OK(
        LaunchSelection<TypeParam>(step.Launch(), step.dims(), step.Arguments(kSelectPass)));
    ASSERT_CUDA_OK(cudaStreamSynchronize(step.stream()));
    EXPECT_EQ(Pick(step.chunk(0), std::vector<double>(scores.begin(), scores.end())),
              step.Selected(0)[0]);
  }
}

template <typename T>
bool SameBits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

TYPED_TEST(DecodeAttentionTest, DependentLaunchesGiveTheSameBitsDirectlyAndInAGraph) {
  const SelectionScope kKvHead = SelectionScope::kKvHead;
  Step<TypeParam> step(Dims(4, 2, 128), {Decode(300), Tidal(900, kKvHead, 100, 1, 2),
                                         Tidal(500, SelectionScope::kQueryHead, 64)});
  DecodeAttentionLaunch launch = step.Launch();
  std::vector<std::vector<TypeParam>> expected;
  for (const AttentionPass& pass : {kSelectPass, kSparsePass}) {
    step.Run(launch, pass);
    expected.push_back(step.Output());
  }
  launch.dependent = true;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t graph_exec = nullptr;
  ASSERT_CUDA_OK(cudaStreamBeginCapture(step.stream(), cudaStreamCaptureModeThreadLocal));
  ASSERT_CUDA_OK(step.Enqueue(launch, kSelectPass));
  ASSERT_CUDA_OK(step.Enqueue(launch, kSparsePass));
  ASSERT_CUDA_OK(cudaStreamEndCapture(step.stream(), &graph));
  ASSERT_CUDA_OK(cudaGraphInstantiate(&graph_exec, graph, 0));
  for (int repeat = 0; repeat < 6; ++repeat) {
    step.Run(launch, kSelectPass);
    ASSERT_TRUE(SameBits(step.Output(), expected[0])) << "repeat " << repeat;
    step.ClearOutput();
    ASSERT_CUDA_OK(cudaGraphLaunch(graph_exec, step.stream()));
    ASSERT_CUDA_OK(cudaStreamSynchronize(step.stream()));
    ASSERT_TRUE(SameBits(step.Output(), expected[1])) << "repeat " << repeat;
  }
  ASSERT_CUDA_OK(cudaGraphExecDestroy(graph_exec));
  ASSERT_CUDA_OK(cudaGraphDestroy(graph));
}

TYPED_TEST(DecodeAttentionTest, LaunchesInPartsShareTheScores) {
  const SelectionScope kKvHead = SelectionScope::kKvHead;
  Step<TypeParam> step(Dims(4, 2, 64), {Tidal(200, kKvHead, 20), Decode(100),
                                        Tidal(190, kKvHead, 30), Tidal(150, kKvHead, 10)});
  step.Run(step.Launch(), kSelectPass);
  std::vector<std::vector<std::vector<int32_t>>> selected;
  for (const int32_t i : {0, 2, 3}) selected.push_back(step.Selected(i));
  step.Run(step.Launch(), kSparsePass);
  const auto together = step.Output();

  DecodeAttention<TypeParam> arguments = step.Arguments(kSelectPass);
  arguments.workspace.max_score_tokens = 352;  // two chunks of three
  DecodeAttentionLaunch launch = step.Launch();
  launch.max_sets = step.dims().num_kv_heads;
  for (const int32_t first : {0, 2}) {
    launch.first_chunk = first;
    launch.num_chunks = 2;
    ASSERT_CUDA_OK(LaunchContextAttention<TypeParam>(launch, step.dims(), arguments));
    ASSERT_CUDA_OK(LaunchSelection<TypeParam>(launch, step.dims(), arguments));
  }
  ASSERT_CUDA_OK(cudaStreamSynchronize(step.stream()));
  for (int32_t i = 0; i < step.num_chunks(); ++i) this->CheckContext(step, i);
  EXPECT_EQ(selected[0], step.Selected(0));
  EXPECT_EQ(selected[1], step.Selected(2));
  EXPECT_EQ(selected[2], step.Selected(3));

  // Sparse attention does not depend on the chunks beside it.
  step.ClearOutput();
  arguments = step.Arguments(kSparsePass);
  for (const int32_t index : {0, 2, 3}) {
    launch.first_chunk = index;
    launch.num_chunks = 1;
    ASSERT_CUDA_OK(LaunchSparseAttention<TypeParam>(launch, step.dims(), arguments));
  }
  ASSERT_CUDA_OK(cudaStreamSynchronize(step.stream()));
  const auto alone = step.Output();
  const size_t row = Size(step.dims().query_size());
  for (const size_t index : {size_t{0}, size_t{2}, size_t{3}}) {
    EXPECT_EQ(0, std::memcmp(&alone[index * row], &together[index * row], row * sizeof(TypeParam)));
  }
}

TEST(DecodeAttentionSupportsTest, RefusesWhatTheKernelsCannotDo) {
  EXPECT_TRUE(SupportsDecodeAttention(Dims(32, 32, 128)));
  EXPECT_TRUE(SupportsDecodeAttention(Dims(64, 8, 128)));
  EXPECT_TRUE(SupportsDecodeAttention(Dims(32, 8, 64)));
  EXPECT_FALSE(SupportsDecodeAttention(Dims(32, 8, 96)));
  EXPECT_FALSE(SupportsDecodeAttention(Dims(9, 1, 128)));
  EXPECT_FALSE(SupportsDecodeAttention(Dims(5, 2, 128)));
  const ModelDims dims = Dims(4, 2, 64);
  DecodeAttention<__half> arguments = {};
  arguments.cache = {nullptr, 2, 64};
  DecodeAttentionLaunch launch;
  launch.device.num_multiprocessors = 4;
  launch.num_chunks = kMaxAttentionChunks + 1;
  EXPECT_EQ(cudaErrorInvalidValue, LaunchContextAttention<__half>(launch, dims, arguments));
  launch.num_chunks = 1;
  EXPECT_EQ(cudaErrorInvalidValue, LaunchSelection<__half>(launch, dims, arguments));
  launch.max_sets = 5;
  EXPECT_EQ(cudaErrorInvalidValue, LaunchSparseAttention<__half>(launch, dims, arguments));
  launch.max_sets = 4;
  arguments.cache.head_dim = 128;
  EXPECT_EQ(cudaErrorInvalidValue, LaunchSelection<__half>(launch, dims, arguments));
}

}  // namespace
}  // namespace tidal::cuda
