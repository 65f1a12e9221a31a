// Each product of skinny_linear.h against float64 on the CPU, over row counts, odd shapes, biases
// and both element types; then chains of them, with and without programmatic dependent launch.

#include "cuda/kernels/skinny_linear.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <type_traits>
#include <vector>

#include "tests/cuda/device_array.h"

namespace tidal::cuda {
namespace {

using testing::DeviceArray;
using testing::HasDevice;
using testing::TestStream;

template <typename T>
std::vector<T> Random(size_t size, float scale, uint32_t seed) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<float> uniform(-scale, scale);
  std::vector<T> elements(size);
  for (T& element : elements) element = static_cast<T>(uniform(generator));
  return elements;
}

template <typename T>
std::vector<double> Widen(const std::vector<T>& elements) {
  std::vector<double> wide(elements.size());
  for (size_t i = 0; i < elements.size(); ++i) {
    wide[i] = static_cast<double>(static_cast<float>(elements[i]));
  }
  return wide;
}

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

// [num_rows][outputs] = input [num_rows][inputs] * weight^T + bias (may be empty).
std::vector<double> Multiply(const std::vector<double>& weight, const std::vector<double>& input,
                             const std::vector<float>& bias, int32_t num_rows) {
  const size_t inputs = input.size() / static_cast<size_t>(num_rows);
  const size_t outputs = weight.size() / inputs;
  std::vector<double> result;
  for (size_t row = 0; row < static_cast<size_t>(num_rows); ++row) {
    for (size_t output = 0; output < outputs; ++output) {
      double sum = bias.empty() ? 0.0 : bias[output];
      for (size_t i = 0; i < inputs; ++i) {
        sum += weight[output * inputs + i] * input[row * inputs + i];
      }
      result.push_back(sum);
    }
  }
  return result;
}

std::vector<double> Normalize(const std::vector<double>& rows, const std::vector<float>& weight,
                              double eps) {
  std::vector<double> result = rows;
  const size_t width = weight.size();
  for (size_t first = 0; first < rows.size(); first += width) {
    double sum = 0.0;
    for (size_t i = 0; i < width; ++i) sum += rows[first + i] * rows[first + i];
    const double scale = 1.0 / std::sqrt(sum / static_cast<double>(width) + eps);
    for (size_t i = 0; i < width; ++i) result[first + i] *= scale * weight[i];
  }
  return result;
}

constexpr float kEps = 1e-5f;
constexpr int32_t kNumBlocks = 5;
constexpr int32_t kCacheRows[kMaxSkinnyRows] = {3, 70, 16, 31};
constexpr int32_t kPositions[kMaxSkinnyRows] = {0, 131072, 5, 1 << 20};

ModelDims Dims(int32_t hidden, int32_t intermediate, int32_t query_heads, int32_t kv_heads,
               int32_t head_dim, int32_t vocab) {
  return {1, hidden, intermediate, query_heads, kv_heads, head_dim, vocab, kEps};
}

// The step's tables on the device, for `num_rows` decodes of which the last two sample, or the one.
struct Tables {
  explicit Tables(int32_t num_rows)
      : num_samples(std::min(num_rows, 2)),
        counts({StepView::Counts{num_rows, num_rows, num_samples, 0}}),
        positions(std::vector<int32_t>(kPositions, kPositions + kMaxSkinnyRows)),
        cache_rows(std::vector<int32_t>(kCacheRows, kCacheRows + kMaxSkinnyRows)),
        chunks(Chunks()),
        sampling_chunks(std::vector<int32_t>{num_rows - num_samples, num_rows - 1}) {}

  // Chunk i is one token at row i.
  static std::vector<DeviceChunk> Chunks() {
    std::vector<DeviceChunk> chunks(kMaxSkinnyRows);
    for (int32_t i = 0; i < kMaxSkinnyRows; ++i) {
      chunks[static_cast<size_t>(i)].first_row = i;
      chunks[static_cast<size_t>(i)].num_tokens = 1;
    }
    return chunks;
  }

  StepView view() const {
    StepView step = {};
    step.counts = counts.get();
    step.positions = positions.get();
    step.cache_rows = cache_rows.get();
    step.chunks = chunks.get();
    step.sampling_chunks = sampling_chunks.get();
    return step;
  }

  int32_t num_samples;
  DeviceArray<StepView::Counts> counts;
  DeviceArray<int32_t> positions;
  DeviceArray<int32_t> cache_rows;
  DeviceArray<DeviceChunk> chunks;
  DeviceArray<int32_t> sampling_chunks;
};

size_t Size(int64_t rows, int64_t columns = 1) { return static_cast<size_t>(rows * columns); }

template <typename T>
class SkinnyLinearTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!HasDevice()) GTEST_SKIP() << "no CUDA device";
    ASSERT_CUDA_OK(InitSkinnyLinear(&device_));
    counters_ = std::make_unique<DeviceArray<uint32_t>>(std::vector<uint32_t>(2));
  }

  // With a queue the blocks draw their tiles, else each has its share of them.
  SkinnyLaunch Launch(int32_t num_rows, bool with_queue) const {
    return {.device = device_,
            .stream = stream_.get(),
            .num_rows = num_rows,
            .counters = with_queue ? counters_->get() : nullptr};
  }

  // Of results rounded to T, or of inputs rounded to it.
  static constexpr double kTolerance = std::is_same_v<T, __half> ? 8e-4 : 5e-3;
  // Where inputs are exact and sums float32.
  static constexpr double kSumTolerance = 1e-5;

  // With a bias, with a queue too.
  void CheckAttentionInput(const ModelDims& dims, int32_t num_rows, bool with_bias);
  void CheckResidual(const ModelDims& dims, int32_t inputs, int32_t num_rows, bool with_bias);
  void CheckGateUp(const ModelDims& dims, int32_t num_rows, bool with_bias);
  void CheckLmHead(const ModelDims& dims, int32_t num_rows, bool with_queue);

  TestStream stream_;
  SkinnyLinearDevice device_;
  std::unique_ptr<DeviceArray<uint32_t>> counters_;
};

using ElementTypes = ::testing::Types<__nv_bfloat16, __half>;
TYPED_TEST_SUITE(SkinnyLinearTest, ElementTypes);

// A head of [head_dim] in the interleaved order of the weights -> Hugging Face's, rotated.
std::vector<double> Rotate(const double* head, int32_t head_dim, int32_t position,
                           const std::vector<float>& frequencies) {
  std::vector<double> result(Size(head_dim));
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const float angle = static_cast<float>(position) * frequencies[i];
    const double cosine = std::cos(static_cast<double>(angle));
    const double sine = std::sin(static_cast<double>(angle));
    result[i] = head[2 * i] * cosine - head[2 * i + 1] * sine;
    result[i + frequencies.size()] = head[2 * i + 1] * cosine + head[2 * i] * sine;
  }
  return result;
}

template <typename T>
void SkinnyLinearTest<T>::CheckAttentionInput(const ModelDims& dims, int32_t num_rows,
                                              bool with_bias) {
  const auto hidden = Random<float>(Size(num_rows, dims.hidden_size), 2.0f, 1);
  const auto norm = Random<float>(Size(dims.hidden_size), 1.0f, 2);
  const auto weight = Random<T>(Size(dims.qkv_size(), dims.hidden_size), 0.05f, 3);
  const auto bias = Random<float>(with_bias ? Size(dims.qkv_size()) : 0, 1.0f, 4);
  std::vector<float> frequencies;
  for (int32_t i = 0; i < dims.head_dim / 2; ++i) {
    frequencies.push_back(
        std::pow(10000.0f, -2.0f * static_cast<float>(i) / static_cast<float>(dims.head_dim)));
  }
  // The last row is one of the graph's, but not of the step's, where there are several.
  const int32_t num_real_rows = std::max(1, num_rows - 1);
  const Tables tables(num_real_rows);
  const DeviceArray<float> device_hidden(hidden), device_norm(norm), device_bias(bias),
      device_frequencies(frequencies);
  const DeviceArray<T> device_weight(weight), query(Size(num_rows, dims.query_size()));
  const KvCacheView<T> sizes = {nullptr, dims.num_kv_heads, dims.head_dim};
  const DeviceArray<T> cache(Size(kNumBlocks, sizes.block_stride()));
  const KvCacheView<T> view = {cache.get(), dims.num_kv_heads, dims.head_dim};
  ASSERT_CUDA_OK(
      LaunchAttentionInput<T>(Launch(num_rows, with_bias), dims,
                              {device_hidden.get(), device_norm.get(), device_weight.get(),
                               with_bias ? device_bias.get() : nullptr, device_frequencies.get(),
                               query.get(), view, tables.view()}));
  ASSERT_CUDA_OK(cudaDeviceSynchronize());
  EXPECT_EQ(counters_->Read(), std::vector<uint32_t>(2));

  const auto expected =
      Multiply(Widen(weight), Normalize(Widen(hidden), norm, dims.rms_norm_eps), bias, num_rows);
  const auto actual_query = Widen(query.Read());
  const auto actual_cache = Widen(cache.Read());
  std::vector<double> actual, wanted;
  std::set<size_t> written;
  for (int32_t row = 0; row < num_rows; ++row) {
    const double* row_expected = expected.data() + int64_t{row} * dims.qkv_size();
    for (int32_t head = 0; head < dims.num_query_heads + 2 * dims.num_kv_heads; ++head) {
      const double* head_expected = row_expected + int64_t{head} * dims.head_dim;
      const bool is_value = head >= dims.num_query_heads + dims.num_kv_heads;
      std::vector<double> rotated =
          is_value ? std::vector<double>(head_expected, head_expected + dims.head_dim)
                   : Rotate(head_expected, dims.head_dim, kPositions[row], frequencies);
      if (head >= dims.num_query_heads && row >= num_real_rows) continue;
      wanted.insert(wanted.end(), rotated.begin(), rotated.end());
      if (head < dims.num_query_heads) {
        const auto first =
            actual_query.begin() + int64_t{row} * dims.query_size() + int64_t{head} * dims.head_dim;
        actual.insert(actual.end(), first, first + dims.head_dim);
        continue;
      }
      const int32_t kv_head = (head - dims.num_query_heads) % dims.num_kv_heads;
      const int64_t first =
          view.key_offset(kCacheRows[row], kv_head) + (is_value ? view.value_offset() : 0);
      for (int64_t i = first; i < first + dims.head_dim; ++i) {
        actual.push_back(actual_cache[static_cast<size_t>(i)]);
        written.insert(static_cast<size_t>(i));
      }
    }
  }
  EXPECT_LT(RelativeError(actual, wanted), kTolerance);
  for (size_t i = 0; i < actual_cache.size(); ++i) {
    ASSERT_TRUE(written.contains(i) || std::isnan(actual_cache[i])) << "wrote cache element " << i;
  }
}

template <typename T>
void SkinnyLinearTest<T>::CheckResidual(const ModelDims& dims, int32_t inputs, int32_t num_rows,
                                        bool with_bias) {
  const auto input = Random<T>(Size(num_rows, inputs), 1.0f, 5);
  const auto weight = Random<T>(Size(dims.hidden_size, inputs), 0.05f, 6);
  const auto bias = Random<float>(with_bias ? Size(dims.hidden_size) : 0, 1.0f, 7);
  const auto hidden = Random<float>(Size(num_rows, dims.hidden_size), 2.0f, 8);
  const DeviceArray<T> device_input(input), device_weight(weight);
  const DeviceArray<float> device_bias(bias), device_hidden(hidden);
  const ResidualProduct<T> arguments = {device_input.get(), device_weight.get(),
                                        with_bias ? device_bias.get() : nullptr,
                                        device_hidden.get()};
  ASSERT_CUDA_OK(inputs == dims.intermediate_size
                     ? LaunchDown<T>(Launch(num_rows, with_bias), dims, arguments)
                     : LaunchOutputProjection<T>(Launch(num_rows, with_bias), dims, arguments));
  ASSERT_CUDA_OK(cudaDeviceSynchronize());
  EXPECT_EQ(counters_->Read(), std::vector<uint32_t>(2));
  auto expected = Multiply(Widen(weight), Widen(input), bias, num_rows);
  for (size_t i = 0; i < expected.size(); ++i) expected[i] += hidden[i];
  EXPECT_LT(RelativeError(Widen(device_hidden.Read()), expected), kSumTolerance);
}

template <typename T>
void SkinnyLinearTest<T>::CheckGateUp(const ModelDims& dims, int32_t num_rows, bool with_bias) {
  const int32_t outputs = 2 * dims.intermediate_size;
  const auto hidden = Random<float>(Size(num_rows, dims.hidden_size), 2.0f, 9);
  const auto norm = Random<float>(Size(dims.hidden_size), 1.0f, 10);
  const auto weight = Random<T>(Size(outputs, dims.hidden_size), 0.05f, 11);
  const auto bias = Random<float>(with_bias ? Size(outputs) : 0, 1.0f, 12);
  const DeviceArray<float> device_hidden(hidden), device_norm(norm), device_bias(bias);
  const DeviceArray<T> device_weight(weight), output(Size(num_rows, dims.intermediate_size));
  ASSERT_CUDA_OK(LaunchGateUp<T>(Launch(num_rows, with_bias), dims,
                                 {device_hidden.get(), device_norm.get(), device_weight.get(),
                                  with_bias ? device_bias.get() : nullptr, output.get()}));
  ASSERT_CUDA_OK(cudaDeviceSynchronize());
  EXPECT_EQ(counters_->Read(), std::vector<uint32_t>(2));
  const auto sums =
      Multiply(Widen(weight), Normalize(Widen(hidden), norm, dims.rms_norm_eps), bias, num_rows);
  std::vector<double> expected;
  for (size_t i = 0; i < sums.size(); i += 2) {
    expected.push_back(sums[i] / (1.0 + std::exp(-sums[i])) * sums[i + 1]);
  }
  EXPECT_LT(RelativeError(Widen(output.Read()), expected), 2 * kTolerance);
}

template <typename T>
void SkinnyLinearTest<T>::CheckLmHead(const ModelDims& dims, int32_t num_rows, bool with_queue) {
  const auto hidden = Random<float>(Size(num_rows, dims.hidden_size), 2.0f, 13);
  const auto norm = Random<float>(Size(dims.hidden_size), 1.0f, 14);
  const auto weight = Random<T>(Size(dims.vocab_size, dims.hidden_size), 0.05f, 15);
  const Tables tables(num_rows);
  const DeviceArray<float> device_hidden(hidden), device_norm(norm),
      logits(Size(num_rows, dims.vocab_size));
  const DeviceArray<T> device_weight(weight);
  ASSERT_CUDA_OK(LaunchLmHead<T>(
      Launch(num_rows, with_queue), dims,
      {device_hidden.get(), device_norm.get(), device_weight.get(), logits.get(), tables.view()}));
  ASSERT_CUDA_OK(cudaDeviceSynchronize());
  EXPECT_EQ(counters_->Read(), std::vector<uint32_t>(2));
  const int32_t num_samples = tables.num_samples;
  const std::vector<float> sampled(hidden.end() - int64_t{num_samples} * dims.hidden_size,
                                   hidden.end());
  const auto expected =
      Multiply(Widen(weight), Normalize(Widen(sampled), norm, dims.rms_norm_eps), {}, num_samples);
  auto actual = Widen(logits.Read());
  for (size_t i = expected.size(); i < actual.size(); ++i) ASSERT_TRUE(std::isnan(actual[i]));
  actual.resize(expected.size());
  EXPECT_LT(RelativeError(actual, expected), kTolerance);
}

struct NamedShape {
  const char* name;
  ModelDims dims;
};

// Small ones, with rows of W that are not whole tiles, units or slices.
std::vector<NamedShape> Shapes() {
  return {{"hidden 256, 2 groups", Dims(256, 688, 4, 2, 64, 1000)},
          {"hidden 576, 3 groups", Dims(576, 1536, 9, 3, 64, 1002)},
          {"hidden 200, not a multiple of 32; odd vocabulary", Dims(200, 344, 3, 1, 64, 1003)},
          {"hidden 8", Dims(8, 24, 1, 1, 128, 7)},
          {"three and a half thousand inputs of one head", Dims(3584, 264, 7, 1, 128, 300)}};
}

// Rows of W of more than one phase, and as wide as a norm may be.
std::vector<NamedShape> WideShapes() {
  return {{"intermediate 11008", Dims(512, 11008, 2, 2, 128, 300)},
          {"intermediate 14336", Dims(256, 14336, 2, 1, 64, 300)},
          {"hidden 4096", Dims(4096, 1032, 2, 1, 128, 1000)},
          {"intermediate 4104, two phases", Dims(320, 4104, 2, 2, 64, 300)}};
}

TYPED_TEST(SkinnyLinearTest, ProductsOfSmallShapesAreRight) {
  for (const NamedShape& shape : Shapes()) {
    for (int32_t num_rows = 1; num_rows <= kMaxSkinnyRows; ++num_rows) {
      for (bool with_bias : {false, true}) {
        SCOPED_TRACE(std::string(shape.name) + ", rows " + std::to_string(num_rows));
        this->CheckAttentionInput(shape.dims, num_rows, with_bias);
        this->CheckResidual(shape.dims, shape.dims.query_size(), num_rows, with_bias);
        this->CheckGateUp(shape.dims, num_rows, with_bias);
        this->CheckResidual(shape.dims, shape.dims.intermediate_size, num_rows, with_bias);
        this->CheckLmHead(shape.dims, num_rows, with_bias);
        if (this->HasFatalFailure()) return;
      }
    }
  }
}

TYPED_TEST(SkinnyLinearTest, ProductsOfWideShapesAreRight) {
  for (const NamedShape& shape : WideShapes()) {
    for (int32_t num_rows = 1; num_rows <= kMaxSkinnyRows; ++num_rows) {
      SCOPED_TRACE(std::string(shape.name) + ", rows " + std::to_string(num_rows));
      const bool with_bias = num_rows % 2 == 1;
      this->CheckAttentionInput(shape.dims, num_rows, with_bias);
      this->CheckResidual(shape.dims, shape.dims.query_size(), num_rows, with_bias);
      this->CheckGateUp(shape.dims, num_rows, with_bias);
      this->CheckResidual(shape.dims, shape.dims.intermediate_size, num_rows, with_bias);
      this->CheckLmHead(shape.dims, num_rows, with_bias);
    }
  }
}

// A model's layers one after the other, q standing in for attention's output.
template <typename T>
class Chain {
 public:
  Chain(const ModelDims& dims, int32_t num_layers, const SkinnyLinearDevice& device)
      : dims_(dims),
        device_(device),
        norm_(Random<float>(Size(dims.hidden_size), 1.0f, 20)),
        frequencies_(Random<float>(Size(dims.head_dim / 2), 1.0f, 21)),
        tables_(kMaxSkinnyRows),
        hidden_(Size(kMaxSkinnyRows, dims.hidden_size)),
        query_(Size(kMaxSkinnyRows, dims.query_size())),
        activated_(Size(kMaxSkinnyRows, dims.intermediate_size)),
        cache_(Size(kNumBlocks) * 2 * Size(dims.num_kv_heads * kBlockSize, dims.head_dim)),
        logits_(Size(kMaxSkinnyRows, dims.vocab_size)) {
    for (int32_t layer = 0; layer < num_layers; ++layer) {
      const auto add = [&](int32_t outputs, int32_t inputs) {
        weights_.push_back(std::make_unique<DeviceArray<T>>(
            Random<T>(Size(outputs, inputs), 0.05f, static_cast<uint32_t>(weights_.size()))));
      };
      add(dims.qkv_size(), dims.hidden_size);
      add(dims.hidden_size, dims.query_size());
      add(2 * dims.intermediate_size, dims.hidden_size);
      add(dims.hidden_size, dims.intermediate_size);
    }
    lm_head_ = std::make_unique<DeviceArray<T>>(
        Random<T>(Size(dims.vocab_size, dims.hidden_size), 0.05f, 99));
    counters_ =
        std::make_unique<DeviceArray<uint32_t>>(std::vector<uint32_t>(2 * (weights_.size() + 1)));
  }

  void Reset() { hidden_.Write(Random<float>(Size(kMaxSkinnyRows, dims_.hidden_size), 2.0f, 22)); }

  cudaError_t Run(int32_t num_rows, bool dependent, cudaStream_t stream) {
    const auto launch = [&](size_t product) -> SkinnyLaunch {
      return {.device = device_,
              .stream = stream,
              .num_rows = num_rows,
              .dependent = dependent,
              .counters = counters_->get() + 2 * product};
    };
    const KvCacheView<T> cache = {cache_.get(), dims_.num_kv_heads, dims_.head_dim};
    for (size_t i = 0; i < weights_.size(); i += 4) {
      for (cudaError_t error :
           {LaunchAttentionInput<T>(launch(i), dims_,
                                    {hidden_.get(), norm_.get(), weights_[i]->get(), nullptr,
                                     frequencies_.get(), query_.get(), cache, tables_.view()}),
            LaunchOutputProjection<T>(
                launch(i + 1), dims_,
                {query_.get(), weights_[i + 1]->get(), nullptr, hidden_.get()}),
            LaunchGateUp<T>(
                launch(i + 2), dims_,
                {hidden_.get(), norm_.get(), weights_[i + 2]->get(), nullptr, activated_.get()}),
            LaunchDown<T>(launch(i + 3), dims_,
                          {activated_.get(), weights_[i + 3]->get(), nullptr, hidden_.get()})}) {
        if (error != cudaSuccess) return error;
      }
    }
    return LaunchLmHead<T>(
        launch(weights_.size()), dims_,
        {hidden_.get(), norm_.get(), lm_head_->get(), logits_.get(), tables_.view()});
  }

  std::vector<float> hidden() const { return hidden_.Read(); }
  std::vector<float> logits() const { return logits_.Read(); }

 private:
  ModelDims dims_;
  SkinnyLinearDevice device_;
  DeviceArray<float> norm_;
  DeviceArray<float> frequencies_;
  Tables tables_;
  DeviceArray<float> hidden_;
  DeviceArray<T> query_;
  DeviceArray<T> activated_;
  DeviceArray<T> cache_;
  DeviceArray<float> logits_;
  std::vector<std::unique_ptr<DeviceArray<T>>> weights_;
  std::unique_ptr<DeviceArray<T>> lm_head_;
  std::unique_ptr<DeviceArray<uint32_t>> counters_;
};

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TYPED_TEST(SkinnyLinearTest, DependentLaunchesGiveTheSameBitsDirectlyAndInAGraph) {
#ifdef TIDAL_EMULATED
  const ModelDims dims = Dims(256, 704, 2, 2, 128, 200);
  constexpr int kNumRepeats = 4;
#else
  const ModelDims dims = Dims(1024, 2816, 8, 8, 128, 1000);
  constexpr int kNumRepeats = 20;
#endif
  Chain<TypeParam> chain(dims, 8, this->device_);
  cudaStream_t stream = nullptr;
  ASSERT_CUDA_OK(cudaStreamCreate(&stream));
  for (int32_t num_rows : {1, kMaxSkinnyRows}) {
    chain.Reset();
    ASSERT_CUDA_OK(chain.Run(num_rows, /*dependent=*/false, stream));
    ASSERT_CUDA_OK(cudaStreamSynchronize(stream));
    const auto expected = chain.hidden();
    const auto expected_logits = chain.logits();
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t graph_exec = nullptr;
    ASSERT_CUDA_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    ASSERT_CUDA_OK(chain.Run(num_rows, /*dependent=*/true, stream));
    ASSERT_CUDA_OK(cudaStreamEndCapture(stream, &graph));
    ASSERT_CUDA_OK(cudaGraphInstantiate(&graph_exec, graph, 0));
    for (int repeat = 0; repeat < kNumRepeats; ++repeat) {
      chain.Reset();
      ASSERT_CUDA_OK(repeat % 2 == 0 ? chain.Run(num_rows, /*dependent=*/true, stream)
                                     : cudaGraphLaunch(graph_exec, stream));
      ASSERT_CUDA_OK(cudaStreamSynchronize(stream));
      ASSERT_TRUE(SameBits(chain.hidden(), expected)) << "repeat " << repeat;
      const size_t num_sampled = Size(std::min(num_rows, 2), dims.vocab_size);
      ASSERT_EQ(0, std::memcmp(chain.logits().data(), expected_logits.data(),
                               num_sampled * sizeof(float)));
    }
    ASSERT_CUDA_OK(cudaGraphExecDestroy(graph_exec));
    ASSERT_CUDA_OK(cudaGraphDestroy(graph));
  }
  ASSERT_CUDA_OK(cudaStreamDestroy(stream));
}

TYPED_TEST(SkinnyLinearTest, ARowsResultDoesNotDependOnTheRowsBesideIt) {
  const ModelDims dims = Dims(512, 4608, 4, 4, 128, 1000);
  const int32_t inputs = dims.intermediate_size;
  const auto input = Random<TypeParam>(Size(kMaxSkinnyRows + 1, inputs), 1.0f, 30);
  const DeviceArray<TypeParam> weight(Random<TypeParam>(Size(dims.hidden_size, inputs), 0.05f, 31));
  const auto run = [&](const std::vector<TypeParam>& rows, int32_t num_rows) {
    const DeviceArray<TypeParam> device_rows(rows);
    const DeviceArray<float> hidden(std::vector<float>(Size(num_rows, dims.hidden_size)));
    EXPECT_EQ(cudaSuccess,
              LaunchDown<TypeParam>(this->Launch(num_rows, /*with_queue=*/false), dims,
                                    {device_rows.get(), weight.get(), nullptr, hidden.get()}));
    return hidden.Read();
  };
  const auto row_of = [&](int32_t row) {
    const auto begin = input.begin() + int64_t{row} * inputs;
    return std::vector<TypeParam>(begin, begin + inputs);
  };
  for (int32_t num_rows = 2; num_rows <= kMaxSkinnyRows; ++num_rows) {
    const std::vector<TypeParam> together(input.begin(),
                                          input.begin() + int64_t{num_rows} * inputs);
    const auto expected = run(together, num_rows);
    // Each row in turn, beside copies of another.
    for (int32_t row = 0; row < num_rows; ++row) {
      std::vector<TypeParam> rows;
      for (int32_t i = 0; i < num_rows; ++i) {
        const auto values = row_of(i == row ? row : kMaxSkinnyRows);
        rows.insert(rows.end(), values.begin(), values.end());
      }
      const auto actual = run(rows, num_rows);
      const int64_t first = int64_t{row} * dims.hidden_size;
      EXPECT_EQ(0, std::memcmp(actual.data() + first, expected.data() + first,
                               Size(dims.hidden_size) * sizeof(float)))
          << "row " << row << " of " << num_rows;
    }
  }
}

TEST(SkinnyLinearSupportsTest, RefusesWhatTheLaunchesCannotDo) {
  const ModelDims llama2 = Dims(4096, 11008, 32, 32, 128, 32000);
  for (int32_t num_rows : {1, kMaxSkinnyRows}) {
    EXPECT_TRUE(SupportsAttentionInput(llama2, num_rows));
    EXPECT_TRUE(SupportsOutputProjection(llama2, num_rows));
    EXPECT_TRUE(SupportsGateUp(llama2, num_rows));
    EXPECT_TRUE(SupportsDown(llama2, num_rows));
    EXPECT_TRUE(SupportsLmHead(llama2, num_rows));
  }
  EXPECT_FALSE(SupportsGateUp(llama2, 0));
  EXPECT_FALSE(SupportsGateUp(llama2, kMaxSkinnyRows + 1));
  const ModelDims wide = Dims(8192, 28672, 64, 8, 128, 128256);
  EXPECT_FALSE(SupportsAttentionInput(wide, 1));
  EXPECT_FALSE(SupportsGateUp(wide, 1));
  EXPECT_FALSE(SupportsLmHead(wide, 1));
  EXPECT_TRUE(SupportsOutputProjection(wide, 1));
  EXPECT_TRUE(SupportsDown(wide, 1));
  const ModelDims unaligned = Dims(100, 44, 1, 1, 64, 50);
  EXPECT_FALSE(SupportsAttentionInput(unaligned, 1));
  EXPECT_FALSE(SupportsDown(unaligned, 1));
  EXPECT_EQ(cudaErrorInvalidValue,
            LaunchGateUp<__half>({{}, nullptr, kMaxSkinnyRows + 1}, llama2, {}));
}

}  // namespace
}  // namespace tidal::cuda
