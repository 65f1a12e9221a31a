// The device's sampler against the reference of engine/backend/sampling.h: random options, rows of
// all kinds in one launch, histories that grow by what is drawn.

#include "cuda/kernels/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "engine/backend/philox.h"
#include "tests/cuda/device_array.h"
#include "tests/engine/backend/reference_sampler.h"

namespace tidal::cuda {
namespace {

using testing::DeviceArray;
using testing::HasDevice;
using testing::TestStream;
using ::tidal::testing::KeptTokens;
using ::tidal::testing::ReferenceKeep;
using ::tidal::testing::ReferenceSample;
using ::tidal::testing::SamplerHistory;

// A step whose chunks all sample, chunk i with a slot of its own.
class SamplingStep {
 public:
  explicit SamplingStep(const std::vector<int32_t>& slots)
      : counts_({{.num_rows = 0,
                  .num_chunks = static_cast<int32_t>(slots.size()),
                  .num_samples = static_cast<int32_t>(slots.size()),
                  .num_prefill_tiles = 0}}),
        chunks_(Chunks(slots)),
        sampling_chunks_(Ascending(slots.size())) {}

  StepView view() const {
    StepView step = {};
    step.counts = counts_.get();
    step.chunks = chunks_.get();
    step.sampling_chunks = sampling_chunks_.get();
    return step;
  }

 private:
  static std::vector<DeviceChunk> Chunks(const std::vector<int32_t>& slots) {
    std::vector<DeviceChunk> chunks(slots.size());
    for (size_t i = 0; i < slots.size(); ++i) chunks[i].sampler_slot = slots[i];
    return chunks;
  }
  static std::vector<int32_t> Ascending(size_t size) {
    std::vector<int32_t> indices(size);
    for (size_t i = 0; i < size; ++i) indices[i] = static_cast<int32_t>(i);
    return indices;
  }

  DeviceArray<StepView::Counts> counts_;
  DeviceArray<DeviceChunk> chunks_;
  DeviceArray<int32_t> sampling_chunks_;
};

class SamplerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!HasDevice()) GTEST_SKIP() << "no CUDA device";
  }

  void Allocate(int32_t num_slots, int32_t vocab_size) {
    sampler_ = std::make_unique<DeviceSampler>();
    vocab_size_ = vocab_size;
    ASSERT_CUDA_OK(sampler_->Allocate(
        {.num_slots = num_slots, .vocab_size = vocab_size, .max_history_tokens = 16}));
  }

  int32_t RandomToken() {
    return static_cast<int32_t>(random_() % static_cast<uint32_t>(vocab_size_));
  }
  float RandomFloat(float low, float high) {
    return std::uniform_real_distribution<float>(low, high)(random_);
  }
  std::vector<int32_t> RandomTokens(size_t most) {
    std::vector<int32_t> tokens(random_() % (most + 1));
    for (int32_t& token : tokens) token = RandomToken();
    return tokens;
  }

  SamplingParams RandomParams() {
    SamplingParams params;
    params.seed = random_();
    params.temperature = random_() % 3 == 0 ? 0.0f : RandomFloat(0.3f, 1.5f);
    if (random_() % 2 == 0) params.top_k = static_cast<int32_t>(random_() % 60);
    if (random_() % 2 == 0) params.top_p = RandomFloat(0.05f, 1.0f);
    if (random_() % 2 == 0) params.min_p = RandomFloat(0.0f, 0.3f);
    if (random_() % 3 == 0) params.repetition_penalty = RandomFloat(0.7f, 1.6f);
    if (random_() % 3 == 0) params.presence_penalty = RandomFloat(-2.0f, 2.0f);
    if (random_() % 3 == 0) params.frequency_penalty = RandomFloat(-2.0f, 2.0f);
    if (random_() % 3 == 0) {
      for (const int32_t id : RandomTokens(5))
        params.logit_bias.push_back({id, RandomFloat(-5, 5)});
    }
    if (random_() % 3 == 0 && vocab_size_ > 10) {
      params.min_new_tokens = static_cast<int32_t>(random_() % 20);
      params.suppressed_token_ids = RandomTokens(4);
    }
    params.return_logprobs = random_() % 2 == 0;
    if (params.return_logprobs) {
      params.num_top_logprobs = static_cast<int32_t>(
          random_() % static_cast<uint32_t>(std::min(vocab_size_, kMaxTopLogprobs) + 1));
    }
    return params;
  }

  std::vector<float> RandomLogits() {
    std::vector<float> logits(static_cast<size_t>(vocab_size_));
    std::normal_distribution<float> normal(0.0f, 3.0f);
    for (float& logit : logits) logit = normal(random_);
    // Ties, among the highest too.
    if (random_() % 2 == 0) {
      for (float& logit : logits) logit = std::round(logit);
    }
    return logits;
  }

  // That the record is what the reference draws, up to what exp and log may differ by.
  static void Check(const SamplingParams& params, const SamplerHistory& history,
                    const std::vector<float>& logits, const SampleRecord& record) {
    const KeptTokens kept = ReferenceKeep(params, history, logits);
    const SampledToken expected = ReferenceSample(params, history, logits);
    const auto is_kept = [&](int32_t id) {
      return std::find(kept.ids.begin(), kept.ids.end(), id) != kept.ids.end();
    };
    ASSERT_TRUE(is_kept(record.token_id)) << record.token_id;
    if (params.temperature == 0) {
      ASSERT_EQ(record.token_id, expected.token_id);
    } else {
      const auto value = [&](int32_t id) {
        return kept.logits[static_cast<size_t>(id)] +
               GumbelNoise(params.seed, history.generated.size(), static_cast<uint32_t>(id));
      };
      ASSERT_NEAR(value(record.token_id), value(expected.token_id), 1e-5);
    }
    if (!params.return_logprobs) return;
    double sum = 0;
    for (const float logit : logits) sum += std::exp(double{logit});
    const auto logprob = [&](int32_t id) {
      return double{logits[static_cast<size_t>(id)]} - std::log(sum);
    };
    ASSERT_NEAR(record.logprob, logprob(record.token_id), 2e-5);
    for (int32_t i = 0; i < params.num_top_logprobs; ++i) {
      const TokenLogprob& top = expected.top_logprobs[static_cast<size_t>(i)];
      ASSERT_EQ(record.top_token_ids[i], top.token_id) << i;
      ASSERT_NEAR(record.top_logprobs[i], top.logprob, 2e-5);
    }
  }

  // Rounds of draws for sequences that are bound now and then.
  void RunRounds(int32_t num_slots, int32_t vocab_size, int num_rounds) {
    ASSERT_NO_FATAL_FAILURE(Allocate(num_slots, vocab_size));
    const auto num_rows = static_cast<size_t>(num_slots);
    std::vector<SamplingParams> params(num_rows);
    std::vector<SamplerHistory> histories(num_rows);
    std::vector<bool> is_bound(num_rows);
    const DeviceArray<SampleRecord> device_records(num_rows);
    std::vector<int32_t> slots;
    for (int32_t slot = 0; slot < num_slots; ++slot) slots.push_back(slot);
    for (int round = 0; round < num_rounds; ++round) {
      std::shuffle(slots.begin(), slots.end(), random_);
      for (size_t slot = 0; slot < num_rows; ++slot) {
        if (is_bound[slot] && random_() % 4 != 0) continue;
        params[slot] = RandomParams();
        histories[slot] = {.prompt = RandomTokens(40), .generated = RandomTokens(10)};
        is_bound[slot] = true;
        ASSERT_CUDA_OK(sampler_->Bind(static_cast<int32_t>(slot), params[slot],
                                      histories[slot].prompt, histories[slot].generated,
                                      stream_.get()));
      }
      // Fewer rows than the launch is for.
      const std::vector<int32_t> sampled_slots(slots.begin(), slots.end() - (round % 2));
      std::vector<float> logits;
      std::vector<std::vector<float>> rows;
      for (size_t i = 0; i < num_rows; ++i) {
        rows.push_back(RandomLogits());
        logits.insert(logits.end(), rows.back().begin(), rows.back().end());
      }
      const SamplingStep step(sampled_slots);
      const DeviceArray<float> device_logits(logits);
      ASSERT_CUDA_OK(sampler_->LaunchDraw({.step = step.view(),
                                           .logits = device_logits.get(),
                                           .records = device_records.get(),
                                           .num_rows = num_slots},
                                          stream_.get()));
      const auto records = device_records.Read();
      for (size_t i = 0; i < sampled_slots.size(); ++i) {
        const auto slot = static_cast<size_t>(sampled_slots[i]);
        ASSERT_NO_FATAL_FAILURE(Check(params[slot], histories[slot], rows[i], records[i]))
            << "round " << round << " row " << i << " vocabulary " << vocab_size;
        histories[slot].generated.push_back(records[i].token_id);
      }
    }
  }

  TestStream stream_;
  std::unique_ptr<DeviceSampler> sampler_;
  int32_t vocab_size_ = 0;
  std::mt19937 random_{17};
};

TEST_F(SamplerTest, DrawsWhatTheReferenceDraws) {
  RunRounds(/*num_slots=*/5, /*vocab_size=*/1000, /*num_rounds=*/12);
}

TEST_F(SamplerTest, ServesOddAndTinyVocabularies) {
  for (const int32_t vocab_size : {1, 2, 33, 257}) RunRounds(3, vocab_size, 6);
}

TEST_F(SamplerTest, ServesLargeVocabulariesByTeamsOfBlocks) {
#ifdef TIDAL_EMULATED
  RunRounds(2, 9001, 2);
#else
  RunRounds(4, 32'000, 10);
  RunRounds(4, 128'256, 10);
  RunRounds(2, kMaxSamplerVocabSize, 4);
#endif
}

// Rows in which thousands of tokens tie, or lie further apart than the first digit of the search
// reaches: the threshold is then found by the lower digits of ranks.
TEST_F(SamplerTest, FindsThresholdsAmongTiesAndExtremes) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kLargest = std::numeric_limits<float>::max();
#ifdef TIDAL_EMULATED
  constexpr int32_t kVocabSize = 4999;
#else
  constexpr int32_t kVocabSize = 128'255;
#endif
  const auto flat = [](int32_t) { return -1.5f; };
  const auto zeros = [](int32_t id) { return id % 2 == 0 ? 0.0f : -0.0f; };
  const auto two_levels = [](int32_t id) { return id % 3 == 0 ? 1.0f : -60.0f; };
  const auto far_apart = [](int32_t id) { return id == 7 ? kLargest : -kLargest; };
  const auto mostly_excluded = [](int32_t id) { return id % 5 == 0 ? 2.0f : -kInfinity; };
  const auto dense = [](int32_t id) { return 1e-6f * static_cast<float>((id * 37) % kVocabSize); };
  const std::vector<std::function<float(int32_t)>> shapes = {flat,      zeros,           two_levels,
                                                             far_apart, mostly_excluded, dense};
  const std::vector<SamplingParams> options = {
      {.temperature = 0.0f, .return_logprobs = true, .num_top_logprobs = 20},
      {.temperature = 1.0f, .top_k = 1},
      {.temperature = 1.0f, .top_k = 700},
      {.temperature = 1.0f, .top_k = 3000},
      {.temperature = 1.0f, .top_k = kVocabSize - 1},
      {.temperature = 1.0f, .top_p = 0.4f},
      {.temperature = 1.0f, .top_p = 0.7f, .top_k = 2500},
      {.temperature = 1.0f, .top_p = 1e-6f},
      {.temperature = 1.0f, .min_p = 1.0f}};
  const auto num_rows = static_cast<int32_t>(options.size());
  ASSERT_NO_FATAL_FAILURE(Allocate(num_rows, kVocabSize));
  std::vector<int32_t> slots;
  for (int32_t slot = 0; slot < num_rows; ++slot) slots.push_back(slot);
  const SamplingStep step(slots);
  const DeviceArray<SampleRecord> device_records(options.size());
  for (size_t shape = 0; shape < shapes.size(); ++shape) {
    std::vector<float> row;
    for (int32_t id = 0; id < kVocabSize; ++id) row.push_back(shapes[shape](id));
    std::vector<float> logits;
    std::vector<SamplingParams> params = options;
    for (int32_t slot = 0; slot < num_rows; ++slot) {
      params[static_cast<size_t>(slot)].seed = random_();
      ASSERT_CUDA_OK(
          sampler_->Bind(slot, params[static_cast<size_t>(slot)], {}, {}, stream_.get()));
      logits.insert(logits.end(), row.begin(), row.end());
    }
    const DeviceArray<float> device_logits(logits);
    ASSERT_CUDA_OK(sampler_->LaunchDraw({.step = step.view(),
                                         .logits = device_logits.get(),
                                         .records = device_records.get(),
                                         .num_rows = num_rows},
                                        stream_.get()));
    const auto records = device_records.Read();
    for (size_t i = 0; i < params.size(); ++i) {
      const KeptTokens kept = ReferenceKeep(params[i], {}, row);
      const bool is_kept =
          std::find(kept.ids.begin(), kept.ids.end(), records[i].token_id) != kept.ids.end();
      EXPECT_TRUE(is_kept) << "shape " << shape << " row " << i << ": " << records[i].token_id;
      EXPECT_EQ(records[i].token_id, ReferenceSample(params[i], {}, row).token_id)
          << "shape " << shape << " row " << i;
      if (params[i].num_top_logprobs == 0) continue;
      const SampledToken expected = ReferenceSample(params[i], {}, row);
      for (size_t top = 0; top < expected.top_logprobs.size(); ++top) {
        EXPECT_EQ(records[i].top_token_ids[top], expected.top_logprobs[top].token_id)
            << "shape " << shape << " place " << top;
      }
    }
  }
}

TEST_F(SamplerTest, KeepsTheLastTokenForTheNextStep) {
  Allocate(2, 100);
  ASSERT_CUDA_OK(sampler_->Bind(0, {.temperature = 0.0f}, {}, {}, stream_.get()));
  const std::vector<int32_t> generated = {3, 8};
  ASSERT_CUDA_OK(sampler_->Bind(1, {.temperature = 0.0f}, {}, generated, stream_.get()));
  ASSERT_CUDA_OK(cudaStreamSynchronize(stream_.get()));
  SamplerSlot slots[2];
  ASSERT_CUDA_OK(cudaMemcpy(slots, sampler_->slots(), sizeof(slots), cudaMemcpyDeviceToHost));
  EXPECT_EQ(slots[0].last_token, -1);
  EXPECT_EQ(slots[1].last_token, 8);
  EXPECT_EQ(slots[1].num_generated_tokens, 2);
}

TEST_F(SamplerTest, RefusesWhatIsOutOfRange) {
  Allocate(2, 100);
  const auto bind = [&](int32_t slot, const SamplingParams& params,
                        const std::vector<int32_t>& prompt) {
    return sampler_->Bind(slot, params, prompt, {}, stream_.get());
  };
  EXPECT_EQ(cudaErrorInvalidValue, bind(2, {}, {}));
  EXPECT_EQ(cudaErrorInvalidValue, bind(0, {}, {100}));
  EXPECT_EQ(cudaErrorInvalidValue, bind(0, {.logit_bias = {{-1, 1.0f}}}, {}));
  EXPECT_EQ(cudaErrorInvalidValue, bind(0, {.num_top_logprobs = 21}, {}));
  EXPECT_EQ(cudaErrorInvalidValue, bind(0, {.suppressed_token_ids = {100}}, {}));
  EXPECT_EQ(cudaSuccess, bind(0, {.suppressed_token_ids = {99}}, {99}));
  EXPECT_EQ(cudaErrorInvalidValue,
            sampler_->LaunchDraw({.step = {}, .logits = nullptr, .records = nullptr, .num_rows = 3},
                                 stream_.get()));
}

}  // namespace
}  // namespace tidal::cuda
