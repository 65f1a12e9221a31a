// Each kernel of elementwise.h and weight_layout.h against float64 on the CPU.

#include "cuda/kernels/elementwise.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <type_traits>
#include <vector>

#include "cuda/kernels/weight_layout.h"
#include "engine/backend/step_batch.h"
#include "tests/cuda/device_array.h"

namespace tidal::cuda {
namespace {

using testing::DeviceArray;
using testing::HasDevice;
using testing::TestStream;

constexpr ModelDims kDims = {.num_layers = 1,
                             .hidden_size = 312,  // no multiple of a block's vectors
                             .intermediate_size = 200,
                             .num_query_heads = 6,
                             .num_kv_heads = 2,
                             .head_dim = 64,
                             .vocab_size = 50,
                             .rms_norm_eps = 1e-5f};

template <typename T>
std::vector<T> Random(size_t size, float scale, uint32_t seed) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<float> uniform(-scale, scale);
  std::vector<T> elements(size);
  for (T& element : elements) element = static_cast<T>(uniform(generator));
  return elements;
}

template <typename T>
double Wide(T element) {
  return static_cast<double>(static_cast<float>(element));
}

size_t Size(int64_t rows, int64_t columns) { return static_cast<size_t>(rows * columns); }

// Three chunks: a decode that reads its slot's last token, a prefill of four rows that samples, one
// of two that does not. Seven rows, in launches of eight.
class Tables {
 public:
  static constexpr int32_t kNumRows = 7;
  static constexpr int32_t kBucket = 8;
  static constexpr int32_t kLastToken = 41;

  StepView view() const {
    StepView step = {};
    step.counts = counts_.get();
    step.token_ids = token_ids_.get();
    step.positions = positions_.get();
    step.cache_rows = cache_rows_.get();
    step.chunk_of_row = chunk_of_row_.get();
    step.chunks = chunks_.get();
    step.sampling_chunks = sampling_chunks_.get();
    return step;
  }

  const std::vector<int32_t> token_ids = {kLastSampledToken, 3, 17, 49, 0, 8, 9, 0};
  const std::vector<int32_t> positions = {100'000, 5, 6, 7, 8, 0, 1, 0};
  const std::vector<int32_t> cache_rows = {31, 64, 65, 66, 67, 2, 3, 0};

 private:
  static DeviceChunk Chunk(int32_t first_row, int32_t num_tokens, bool samples) {
    DeviceChunk chunk = {};
    chunk.first_row = first_row;
    chunk.num_tokens = num_tokens;
    chunk.sampler_slot = 1;
    chunk.samples = samples;
    return chunk;
  }

  DeviceArray<StepView::Counts> counts_{
      {{.num_rows = kNumRows, .num_chunks = 3, .num_samples = 2, .num_prefill_tiles = 0}}};
  DeviceArray<int32_t> token_ids_{token_ids};
  DeviceArray<int32_t> positions_{positions};
  DeviceArray<int32_t> cache_rows_{cache_rows};
  DeviceArray<int32_t> chunk_of_row_{{0, 1, 1, 1, 1, 2, 2, 0}};
  DeviceArray<DeviceChunk> chunks_{{Chunk(0, 1, true), Chunk(1, 4, true), Chunk(5, 2, false)}};
  DeviceArray<int32_t> sampling_chunks_{{0, 1, 0}};
};

template <typename T>
class ElementwiseTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!HasDevice()) GTEST_SKIP() << "no CUDA device";
  }

  // Of a result rounded to T.
  static constexpr double kTolerance = std::is_same_v<T, __half> ? 1e-3 : 8e-3;

  static void ExpectNear(double expected, double actual) {
    EXPECT_NEAR(expected, actual, kTolerance * std::max(1.0, std::abs(expected)));
  }

  // Expected RMSNorm of `row` of hidden.
  static double Normed(const std::vector<float>& hidden, const std::vector<float>& weight,
                       int32_t row, int32_t column) {
    const size_t first = Size(row, kDims.hidden_size);
    double sum = 0.0;
    for (size_t i = 0; i < weight.size(); ++i) sum += Wide(hidden[first + i]) * hidden[first + i];
    const double rms = std::sqrt(sum / kDims.hidden_size + kDims.rms_norm_eps);
    return hidden[first + static_cast<size_t>(column)] / rms * weight[static_cast<size_t>(column)];
  }

  ElementwiseLaunch Launch(int32_t num_rows = Tables::kBucket) const {
    return {stream_.get(), num_rows, /*dependent=*/false};
  }

  TestStream stream_;
};

using ElementTypes = ::testing::Types<__nv_bfloat16, __half>;
TYPED_TEST_SUITE(ElementwiseTest, ElementTypes);

TYPED_TEST(ElementwiseTest, EmbedsTokensAndTheLastDrawnOne) {
  const Tables tables;
  const auto embedding = Random<TypeParam>(Size(kDims.vocab_size, kDims.hidden_size), 1.0f, 1);
  const DeviceArray<TypeParam> device_embedding(embedding);
  std::vector<SamplerSlot> slots(2);
  slots[1].last_token = Tables::kLastToken;
  const DeviceArray<SamplerSlot> device_slots(slots);
  const DeviceArray<float> hidden(Size(Tables::kBucket, kDims.hidden_size));
  ASSERT_CUDA_OK(LaunchEmbed(this->Launch(), kDims, tables.view(), device_slots.get(),
                             device_embedding.get(), hidden.get()));
  const auto actual = hidden.Read();
  for (int32_t row = 0; row < Tables::kBucket; ++row) {
    const int32_t token =
        row == 0 ? Tables::kLastToken : tables.token_ids[static_cast<size_t>(row)];
    for (int32_t i = 0; i < kDims.hidden_size; ++i) {
      const double expected =
          row < Tables::kNumRows
              ? Wide(embedding[Size(token, kDims.hidden_size) + static_cast<size_t>(i)])
              : 0.0;
      ASSERT_EQ(expected, Wide(actual[Size(row, kDims.hidden_size) + static_cast<size_t>(i)]));
    }
  }
}

TYPED_TEST(ElementwiseTest, NormalizesRows) {
  const auto hidden = Random<float>(Size(Tables::kBucket, kDims.hidden_size), 3.0f, 2);
  const auto weight = Random<float>(static_cast<size_t>(kDims.hidden_size), 2.0f, 3);
  const DeviceArray<float> device_hidden(hidden);
  const DeviceArray<float> device_weight(weight);
  const DeviceArray<TypeParam> output(hidden.size());
  ASSERT_CUDA_OK(
      LaunchRmsNorm(this->Launch(), kDims, device_hidden.get(), device_weight.get(), output.get()));
  const auto actual = output.Read();
  for (int32_t row = 0; row < Tables::kBucket; ++row) {
    for (int32_t i = 0; i < kDims.hidden_size; ++i) {
      this->ExpectNear(this->Normed(hidden, weight, row, i),
                       Wide(actual[Size(row, kDims.hidden_size) + static_cast<size_t>(i)]));
    }
  }
}

TYPED_TEST(ElementwiseTest, NormalizesTheLastRowsOfChunksThatSample) {
  const Tables tables;
  const auto hidden = Random<float>(Size(Tables::kBucket, kDims.hidden_size), 3.0f, 4);
  const auto weight = Random<float>(static_cast<size_t>(kDims.hidden_size), 2.0f, 5);
  const DeviceArray<float> device_hidden(hidden);
  const DeviceArray<float> device_weight(weight);
  const DeviceArray<TypeParam> output(Size(3, kDims.hidden_size));
  ASSERT_CUDA_OK(LaunchSampledRmsNorm(this->Launch(3), kDims, tables.view(), device_hidden.get(),
                                      device_weight.get(), output.get()));
  const auto actual = output.Read();
  const int32_t rows[] = {0, 4, -1};
  for (int32_t sample = 0; sample < 3; ++sample) {
    for (int32_t i = 0; i < kDims.hidden_size; ++i) {
      const double expected =
          rows[sample] < 0 ? 0.0 : this->Normed(hidden, weight, rows[sample], i);
      this->ExpectNear(expected,
                       Wide(actual[Size(sample, kDims.hidden_size) + static_cast<size_t>(i)]));
    }
  }
}

TYPED_TEST(ElementwiseTest, RotatesAndStores) {
  const Tables tables;
  const int32_t qkv_size = kDims.qkv_size();
  const int32_t half = kDims.head_dim / 2;
  const auto qkv = Random<TypeParam>(Size(Tables::kBucket, qkv_size), 2.0f, 6);
  const auto bias = Random<float>(static_cast<size_t>(qkv_size), 0.5f, 7);
  std::vector<float> frequencies;
  for (int32_t i = 0; i < half; ++i) {
    frequencies.push_back(std::pow(500'000.0f, -static_cast<float>(i) / static_cast<float>(half)));
  }
  constexpr int32_t kNumBlocks = 5;
  KvCacheView<TypeParam> cache = {nullptr, kDims.num_kv_heads, kDims.head_dim};
  const DeviceArray<TypeParam> device_cache(static_cast<size_t>(kNumBlocks * cache.block_stride()));
  cache.base = device_cache.get();
  const DeviceArray<TypeParam> device_qkv(qkv);
  const DeviceArray<float> device_bias(bias);
  const DeviceArray<float> device_frequencies(frequencies);
  const DeviceArray<TypeParam> query(Size(Tables::kBucket, kDims.query_size()));
  ASSERT_CUDA_OK(LaunchRotateAndStore<TypeParam>(
      this->Launch(), kDims,
      {device_qkv.get(), device_bias.get(), device_frequencies.get(), query.get(), cache,
       tables.view()}));
  const auto queries = query.Read();
  const auto cached = device_cache.Read();
  size_t num_written = 0;
  for (int32_t row = 0; row < Tables::kNumRows; ++row) {
    const auto column = [&](int32_t i) {
      return Wide(qkv[Size(row, qkv_size) + static_cast<size_t>(i)]) + bias[static_cast<size_t>(i)];
    };
    const int32_t cache_row = tables.cache_rows[static_cast<size_t>(row)];
    for (int32_t head = 0; head < kDims.num_query_heads + kDims.num_kv_heads; ++head) {
      for (int32_t i = 0; i < half; ++i) {
        // As engine/cpu/rotary.h: the angle is a float product.
        const float angle = static_cast<float>(tables.positions[static_cast<size_t>(row)]) *
                            frequencies[static_cast<size_t>(i)];
        const double first = column(head * kDims.head_dim + 2 * i);
        const double second = column(head * kDims.head_dim + 2 * i + 1);
        const double low = first * std::cos(angle) - second * std::sin(angle);
        const double high = second * std::cos(angle) + first * std::sin(angle);
        const bool is_query = head < kDims.num_query_heads;
        const auto& target = is_query ? queries : cached;
        const size_t offset =
            is_query
                ? Size(row, kDims.query_size()) + static_cast<size_t>(head * kDims.head_dim + i)
                : static_cast<size_t>(cache.key_offset(cache_row, head - kDims.num_query_heads) +
                                      i);
        this->ExpectNear(low, Wide(target[offset]));
        this->ExpectNear(high, Wide(target[offset + static_cast<size_t>(half)]));
        num_written += is_query ? 0 : 2;
      }
    }
    for (int32_t head = 0; head < kDims.num_kv_heads; ++head) {
      for (int32_t i = 0; i < kDims.head_dim; ++i) {
        const int32_t first = (kDims.num_query_heads + kDims.num_kv_heads + head) * kDims.head_dim;
        this->ExpectNear(column(first + i),
                         Wide(cached[static_cast<size_t>(cache.value_offset() +
                                                         cache.key_offset(cache_row, head) + i)]));
        ++num_written;
      }
    }
  }
  size_t num_changed = 0;
  for (const TypeParam element : cached) num_changed += std::isnan(Wide(element)) ? 0 : 1;
  EXPECT_EQ(num_changed, num_written);  // nothing else, and not the row past the step's
}

TYPED_TEST(ElementwiseTest, MultipliesBySilu) {
  const int32_t size = kDims.intermediate_size;
  const auto gate_up = Random<TypeParam>(Size(Tables::kBucket, 2 * size), 6.0f, 8);
  const auto bias = Random<float>(static_cast<size_t>(2 * size), 1.0f, 9);
  const DeviceArray<TypeParam> device_gate_up(gate_up);
  const DeviceArray<float> device_bias(bias);
  const DeviceArray<TypeParam> output(Size(Tables::kBucket, size));
  for (const bool with_bias : {false, true}) {
    ASSERT_CUDA_OK(LaunchSiluMultiply(this->Launch(), kDims, device_gate_up.get(),
                                      with_bias ? device_bias.get() : nullptr, output.get()));
    const auto actual = output.Read();
    for (int32_t row = 0; row < Tables::kBucket; ++row) {
      for (int32_t i = 0; i < size; ++i) {
        const auto column = [&](int32_t c) {
          return Wide(gate_up[Size(row, 2 * size) + static_cast<size_t>(c)]) +
                 (with_bias ? bias[static_cast<size_t>(c)] : 0.0f);
        };
        const double gate = column(2 * i);
        this->ExpectNear(gate / (1.0 + std::exp(-gate)) * column(2 * i + 1),
                         Wide(actual[Size(row, size) + static_cast<size_t>(i)]));
      }
    }
  }
}

TYPED_TEST(ElementwiseTest, ConvertsRowsIntoTheirOrder) {
  constexpr int32_t kRows = 2 * 64;
  constexpr int32_t kColumns = 5;
  const auto source = Random<float>(Size(kRows, kColumns), 2.0f, 10);
  const DeviceArray<float> device_source(source);
  for (const RowMap& map : {RowMap{.offset = 3}, RowMap{.offset = 1, .stride = 2},
                            RowMap{.offset = 64, .paired_head_dim = 64}}) {
    const DeviceArray<TypeParam> target(Size(2 * kRows + 8, kColumns));
    // In two pieces, as the loader does.
    constexpr int32_t kFirstPiece = 50;
    ASSERT_CUDA_OK(LaunchConvertRows(device_source.get(), DType::kFloat32, 0, kFirstPiece, kColumns,
                                     map, target.get(), this->stream_.get()));
    ASSERT_CUDA_OK(LaunchConvertRows(device_source.get() + kFirstPiece * kColumns, DType::kFloat32,
                                     kFirstPiece, kRows - kFirstPiece, kColumns, map, target.get(),
                                     this->stream_.get()));
    const auto actual = target.Read();
    size_t num_written = 0;
    for (const TypeParam element : actual) num_written += std::isnan(Wide(element)) ? 0 : 1;
    EXPECT_EQ(num_written, source.size());
    for (int32_t row = 0; row < kRows; ++row) {
      int32_t expected_row = map.offset + row * map.stride;
      if (map.paired_head_dim != 0) {
        const int32_t element = row % 64;
        expected_row =
            map.offset + row / 64 * 64 + (element < 32 ? 2 * element : 2 * (element - 32) + 1);
      }
      for (int32_t i = 0; i < kColumns; ++i) {
        const auto column = static_cast<size_t>(i);
        ASSERT_EQ(Wide(static_cast<TypeParam>(source[Size(row, kColumns) + column])),
                  Wide(actual[Size(expected_row, kColumns) + column]));
      }
    }
  }
}

TYPED_TEST(ElementwiseTest, FillsWithNumbersOfTheDeviationAskedFor) {
  constexpr size_t kSize = 40'000;
  const DeviceArray<TypeParam> first(kSize);
  const DeviceArray<TypeParam> again(kSize);
  ASSERT_CUDA_OK(LaunchFillUniform(7, 0.25f, kSize, first.get(), this->stream_.get()));
  ASSERT_CUDA_OK(LaunchFillUniform(7, 0.25f, kSize, again.get(), this->stream_.get()));
  const auto values = first.Read();
  const auto values_again = again.Read();
  double sum = 0.0;
  double squares = 0.0;
  for (size_t i = 0; i < kSize; ++i) {
    ASSERT_EQ(Wide(values[i]), Wide(values_again[i]));
    sum += Wide(values[i]);
    squares += Wide(values[i]) * Wide(values[i]);
  }
  EXPECT_NEAR(sum / kSize, 0.0, 0.01);  // 8 deviations of the mean
  EXPECT_NEAR(std::sqrt(squares / kSize), 0.25, 0.01);
}

TEST(ElementwiseFloatTest, AddsABias) {
  if (!HasDevice()) GTEST_SKIP() << "no CUDA device";
  const TestStream stream;
  const auto hidden = Random<float>(Size(3, kDims.hidden_size), 2.0f, 11);
  const auto bias = Random<float>(static_cast<size_t>(kDims.hidden_size), 2.0f, 12);
  const DeviceArray<float> device_hidden(hidden);
  const DeviceArray<float> device_bias(bias);
  ASSERT_CUDA_OK(LaunchAddBias({stream.get(), 3}, kDims, device_bias.get(), device_hidden.get()));
  const auto actual = device_hidden.Read();
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_EQ(hidden[i] + bias[i % bias.size()], actual[i]);
  }
}

TEST(ElementwiseSupportsTest, RefusesSizesThatAreNoMultipleOf8) {
  ModelDims dims = kDims;
  EXPECT_TRUE(SupportsElementwise(dims));
  dims.hidden_size = 100;
  EXPECT_FALSE(SupportsElementwise(dims));
  EXPECT_EQ(cudaErrorInvalidValue, LaunchAddBias({nullptr, 3}, dims, nullptr, nullptr));
}

}  // namespace
}  // namespace tidal::cuda
