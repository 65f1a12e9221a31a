// The golden checkpoints (tests/golden/make_checkpoints.py) whose heads the CUDA backend serves:
// the whole model against Hugging Face transformers' float32 logits, in both of the backend's
// types.

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <tuple>
#include <vector>

#include "cuda/cuda_backend.h"
#include "tests/engine/test_model.h"

namespace tidal {
namespace {

using nlohmann::json;

bool HasDevice() {
  int num_devices = 0;
  return cudaGetDeviceCount(&num_devices) == cudaSuccess && num_devices > 0;
}

// ||actual - expected|| / ||expected||; NaN where anything is.
double RelativeError(const std::vector<float>& actual, const std::vector<float>& expected) {
  EXPECT_EQ(actual.size(), expected.size());
  double difference = 0.0;
  double norm = 0.0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double error = double{actual[i]} - double{expected[i]};
    difference += error * error;
    norm += double{expected[i]} * double{expected[i]};
  }
  return std::sqrt(difference / norm);
}

class CudaGoldenTest : public ::testing::TestWithParam<std::tuple<std::string, DType>> {
 protected:
  void SetUp() override {
    if (!HasDevice()) GTEST_SKIP() << "no CUDA device";
  }

  DType type() const { return std::get<1>(GetParam()); }
  // Of logits, against float32 arithmetic: bfloat16 keeps 8 bits, float16 11.
  double tolerance() const { return type() == DType::kBFloat16 ? 2e-2 : 3e-3; }
  std::string path() const {
    return SourceFolder() + "/tests/golden/checkpoints/" + std::get<0>(GetParam());
  }

  TestModel Load() const {
    return LoadTestModel(
        path(), {.create_backend = [this](const ModelShape& shape, const StepLimits& limits) {
          return CreateCudaBackendOnDevice(shape, limits,
                                           {.memory_fraction = 0.5, .compute_type = type()});
        }});
  }
};

TEST_P(CudaGoldenTest, LogitsAreTransformers) {
  TestModel model = Load();
  std::ifstream file(path() + "/golden.json");
  ASSERT_TRUE(file.good()) << path();
  const json golden = json::parse(file);
  ASSERT_FALSE(golden["prompts"].empty());
  // The emulation is slow.
#ifdef TIDAL_EMULATED
  const std::vector<int32_t> chunk_sizes = {67};
  constexpr size_t kMaxDecodes = 2;
#else
  const std::vector<int32_t> chunk_sizes = {1, 7, 64, 512};
  constexpr size_t kMaxDecodes = 24;
#endif
  for (const int32_t chunk_size : chunk_sizes) {
    for (const json& prompt : golden["prompts"]) {
      SCOPED_TRACE(prompt["name"].get<std::string>() + ", chunks of " + std::to_string(chunk_size));
      const auto expected = prompt["logits"].get<std::vector<float>>();
      // Scattered blocks: nothing may hang on their order.
      TestSequence sequence(&model, /*sampler_slot=*/0, /*first_block=*/500, /*block_stride=*/-3);
      std::vector<float> logits =
          sequence.Prefill(prompt["token_ids"].get<std::vector<int32_t>>(), chunk_size);
      EXPECT_LT(RelativeError(logits, expected), tolerance());
      // Then step by step: the highest logit is the golden one, or nearly tied with it.
      double rms = 0.0;
      for (const float logit : expected) rms += double{logit} * logit;
      rms = std::sqrt(rms / static_cast<double>(expected.size()));
      auto greedy = prompt["greedy_token_ids"].get<std::vector<int32_t>>();
      greedy.resize(std::min(greedy.size(), kMaxDecodes));
      for (const int32_t token_id : greedy) {
        const float highest = logits[static_cast<size_t>(ArgMax(logits))];
        EXPECT_LE(highest - logits[static_cast<size_t>(token_id)], 4 * tolerance() * rms);
        logits = sequence.Run({token_id});
      }
    }
  }
}

#if defined(TIDAL_EMULATED_SM80)
const auto kTypes = ::testing::Values(DType::kFloat16);
#elif defined(TIDAL_EMULATED)
const auto kTypes = ::testing::Values(DType::kBFloat16);
#else
const auto kTypes = ::testing::Values(DType::kBFloat16, DType::kFloat16);
#endif

INSTANTIATE_TEST_SUITE_P(
    Checkpoints, CudaGoldenTest,
    ::testing::Combine(::testing::Values("heads_of_64_fp16", "heads_of_128_bf16"), kTypes),
    [](const auto& test) {
      return std::get<0>(test.param) +
             (std::get<1>(test.param) == DType::kBFloat16 ? "_in_bfloat16" : "_in_float16");
    });

}  // namespace
}  // namespace tidal
