// Every instruction set that this processor has, against float64; what the conformance suite does
// not reach, because it runs the best one only.

#include "engine/cpu/kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace tidal::cpu {
namespace {

class KernelsTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    kernels_ = FindKernels(GetParam());
    if (kernels_ == nullptr) GTEST_SKIP() << "this processor has no " << GetParam();
  }
  std::vector<float> Random(size_t size, float scale = 1.0f) {
    std::vector<float> values(size);
    for (float& value : values) value = scale * normal_(random_);
    return values;
  }

  const Kernels* kernels_ = nullptr;
  std::mt19937 random_{3};
  std::normal_distribution<float> normal_;
};

TEST_P(KernelsTest, MultipliesAnyNumberOfRowsAndOutputs) {
  for (const int num_rows : {1, 2, 5, 6, 7, 11, 12, 13, 25}) {
    for (const int num_outputs : {1, 15, 16, 31, 32, 33, 70}) {
      for (const int num_inputs : {1, 3, 64, 200}) {
        const int num_panels = (num_outputs + kPanelWidth - 1) / kPanelWidth;
        const std::vector<float> x = Random(static_cast<size_t>(num_rows * (num_inputs + 3)));
        const std::vector<float> panels =
            Random(static_cast<size_t>(num_panels * num_inputs * kPanelWidth));
        const std::vector<float> bias = Random(static_cast<size_t>(num_outputs));
        const int y_stride = num_outputs + 5;
        const std::vector<float> before = Random(static_cast<size_t>(num_rows * y_stride));
        for (const bool accumulate : {false, true}) {
          std::vector<float> y = before;
          kernels_->matmul({x.data(), num_inputs + 3, num_rows, num_inputs, panels.data(),
                            num_outputs, accumulate ? bias.data() : nullptr, accumulate, y.data(),
                            y_stride});
          for (int r = 0; r < num_rows; ++r) {
            for (int o = 0; o < y_stride; ++o) {
              const size_t at = static_cast<size_t>(r * y_stride + o);
              double expected = before[at];
              if (o < num_outputs) {
                if (!accumulate) expected = 0.0;
                if (accumulate) expected += bias[static_cast<size_t>(o)];
                for (int i = 0; i < num_inputs; ++i) {
                  expected +=
                      double{x[static_cast<size_t>(r * (num_inputs + 3) + i)]} *
                      panels[static_cast<size_t>((o / kPanelWidth * num_inputs + i) * kPanelWidth +
                                                 o % kPanelWidth)];
                }
              }
              ASSERT_NEAR(y[at], expected, 2e-6 * (20.0 + std::abs(expected)))
                  << num_rows << " " << num_outputs << " " << r;
            }
          }
        }
      }
    }
  }
}

TEST_P(KernelsTest, RowsOfAProductAreTheSameAlone) {
  const int num_inputs = 300;
  const std::vector<float> x = Random(25 * 300);
  const std::vector<float> panels = Random(300 * kPanelWidth);
  std::vector<float> all(25 * kPanelWidth);
  kernels_->matmul({x.data(), num_inputs, 25, num_inputs, panels.data(), kPanelWidth, nullptr,
                    false, all.data(), kPanelWidth});
  for (int r = 0; r < 25; ++r) {
    std::vector<float> alone(kPanelWidth);
    kernels_->matmul({x.data() + r * num_inputs, num_inputs, 1, num_inputs, panels.data(),
                      kPanelWidth, nullptr, false, alone.data(), kPanelWidth});
    EXPECT_TRUE(std::equal(alone.begin(), alone.end(), all.begin() + r * kPanelWidth));
  }
}

TEST_P(KernelsTest, NormsAndActivates) {
  for (const int size : {1, 7, 16, 33, 256}) {
    const std::vector<float> x = Random(static_cast<size_t>(size), 3.0f);
    const std::vector<float> weight = Random(static_cast<size_t>(size));
    std::vector<float> y(static_cast<size_t>(size));
    kernels_->rms_norm(x.data(), weight.data(), size, 1e-5f, y.data());
    double squares = 0.0;
    for (const float v : x) squares += double{v} * v;
    std::vector<float> gate = x;
    kernels_->silu_multiply(gate.data(), weight.data(), size);
    for (size_t i = 0; i < x.size(); ++i) {
      const double norm = x[i] / std::sqrt(squares / size + 1e-5) * weight[i];
      EXPECT_NEAR(y[i], norm, 1e-6 * (1.0 + std::abs(norm)));
      const double silu = x[i] / (1.0 + std::exp(-double{x[i]})) * weight[i];
      EXPECT_NEAR(gate[i], silu, 1e-6 * (1.0 + std::abs(silu)));
    }
  }
}

TEST_P(KernelsTest, SiluStaysFiniteFarFromZero) {
  std::vector<float> gate = {-1000.0f, -100.0f, -88.5f, 88.5f, 100.0f, 1000.0f};
  const std::vector<float> up(gate.size(), 1.0f);
  kernels_->silu_multiply(gate.data(), up.data(), static_cast<int>(gate.size()));
  for (size_t i = 0; i < 3; ++i) EXPECT_NEAR(gate[i], 0.0f, 1e-30f);
  EXPECT_EQ(gate[3], 88.5f);
  EXPECT_EQ(gate[5], 1000.0f);
}

TEST_P(KernelsTest, ExponentialIsAccurate) {
  // One element at a time, so that sum_exp is the exponential itself.
  for (float x = -86.9f; x < 0.0f; x += 0.0137f) {
    const float actual = kernels_->sum_exp(&x, 1, 0.0f);
    const double expected = std::exp(double{x});
    ASSERT_NEAR(actual / expected, 1.0, 1.5e-7) << x;
  }
  const float zero = 0.0f;
  EXPECT_EQ(kernels_->sum_exp(&zero, 1, 0.0f), 1.0f);
  const float far = -std::numeric_limits<float>::infinity();
  EXPECT_EQ(kernels_->sum_exp(&far, 1, 0.0f), 0.0f);
}

TEST_P(KernelsTest, PoolsProbabilities) {
  const std::vector<float> a = Random(77);
  const std::vector<float> b = Random(77);
  std::vector<float> pooled = a;
  // In place, as the decode uses it.
  kernels_->pool_probabilities(pooled.data(), 77, 1.5f, 0.25f, false, pooled.data());
  kernels_->pool_probabilities(b.data(), 77, 0.5f, 0.5f, true, pooled.data());
  for (size_t i = 0; i < 77; ++i) {
    const double expected =
        std::exp(double{a[i]} - 1.5) * 0.25 + std::exp(double{b[i]} - 0.5) * 0.5;
    EXPECT_NEAR(pooled[i] / expected, 1.0, 1e-6);
  }
}

TEST_P(KernelsTest, OrderedKeysKeepTheOrderOfFloats) {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> values = {-infinity, -3e38f, -1.0f,   -1e-30f, -1e-45f, 0.0f,
                                     1e-45f,    1e-30f, 0.9999f, 1.0f,    3e38f,   infinity};
  std::vector<float> scores = values;
  scores.insert(scores.end(), values.begin(), values.end());
  scores.push_back(-0.0f);
  kernels_->to_ordered_keys(scores.data(), static_cast<int64_t>(scores.size()));
  std::vector<int32_t> keys(scores.size());
  std::memcpy(keys.data(), scores.data(), scores.size() * sizeof(float));
  EXPECT_TRUE(std::is_sorted(keys.begin(), keys.begin() + 12));
  EXPECT_EQ(std::adjacent_find(keys.begin(), keys.begin() + 12), keys.begin() + 12);
  EXPECT_TRUE(std::equal(keys.begin(), keys.begin() + 12, keys.begin() + 12));
  EXPECT_EQ(keys.back(), keys[5]) << "-0 is 0";
}

TEST_P(KernelsTest, CountsKeys) {
  std::vector<int32_t> keys;
  for (int32_t i = 0; i < 1003; ++i) keys.push_back((i * 7919) % 1003 - 500);
  for (const int64_t size : {0, 1, 15, 16, 17, 1003}) {
    for (const int32_t threshold : {-600, -500, 0, 100, 502, 503}) {
      EXPECT_EQ(kernels_->count_at_least(keys.data(), size, threshold),
                std::count_if(keys.begin(), keys.begin() + size,
                              [&](int32_t key) { return key >= threshold; }));
    }
  }
}

// One run over blocks, and the same positions gathered, against float64.
TEST_P(KernelsTest, DecodeRunsAttend) {
  const int head_dim = 80;
  const int64_t block_floats = 2 * 16 * head_dim;
  const std::vector<float> cache = Random(static_cast<size_t>(20 * block_floats));
  const std::vector<int32_t> blocks = {7, 3, 19, 0, 11, 5, 2};
  const std::vector<float> queries = Random(3 * 80, 0.3f);
  for (const int num_positions : {1, 2, 15, 16, 17, 100}) {
    std::vector<int32_t> positions;
    for (int i = 0; i < num_positions; ++i) positions.push_back(i);
    for (const bool gathered : {false, true}) {
      std::vector<float> scores(3 * 112), output(3 * 80), max(3), sum(3);
      kernels_->decode_run({.queries = queries.data(),
                            .num_heads = 3,
                            .head_dim = head_dim,
                            .kv = {cache.data(), block_floats, 16 * head_dim},
                            .block_table = blocks.data(),
                            .first_position = 0,
                            .positions = gathered ? positions.data() : nullptr,
                            .num_positions = num_positions,
                            .scores = scores.data(),
                            .scores_stride = 112,
                            .probabilities = scores.data(),
                            .probabilities_stride = 112,
                            .output = output.data(),
                            .max = max.data(),
                            .sum = sum.data()});
      for (int head = 0; head < 3; ++head) {
        std::vector<double> expected(80);
        double total = 0.0;
        for (int t = 0; t < num_positions; ++t) {
          const float* key =
              cache.data() + blocks[static_cast<size_t>(t / 16)] * block_floats + t % 16 * head_dim;
          double score = 0.0;
          for (int d = 0; d < head_dim; ++d) {
            score += double{queries[static_cast<size_t>(head * head_dim + d)]} * key[d];
          }
          const double p = std::exp(score - max[static_cast<size_t>(head)]);
          total += p;
          for (int d = 0; d < head_dim; ++d) {
            expected[static_cast<size_t>(d)] += p * key[16 * head_dim + d];
          }
        }
        EXPECT_NEAR(sum[static_cast<size_t>(head)], total, 1e-5 * total);
        for (int d = 0; d < head_dim; ++d) {
          EXPECT_NEAR(output[static_cast<size_t>(head * head_dim + d)],
                      expected[static_cast<size_t>(d)], 1e-5 * total);
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(InstructionSets, KernelsTest,
                         ::testing::Values("generic", "avx2", "avx512"),
                         [](const auto& test) { return std::string(test.param); });

TEST(KernelsTableTest, PicksOneThatRuns) {
  EXPECT_EQ(FindKernels(BestKernels().instruction_set), &BestKernels());
  EXPECT_EQ(FindKernels("unknown"), nullptr);
}

}  // namespace
}  // namespace tidal::cpu
