// Sampling through the seam: every option against the plain reference on the backend's own logits,
// distributions, and what a seed promises. No layers run: logits come from the embedding alone.

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "tests/engine/backend/reference_model.h"
#include "tests/engine/backend/reference_sampler.h"
#include "tests/engine/backend/step_driver.h"

namespace tidal::testing {
namespace {

// A backend of which each chunk is one token of context.
class SamplerDriver {
 public:
  SamplerDriver(const BackendUnderTest& under_test, int32_t vocab_size, int32_t num_slots)
      : SamplerDriver(under_test, Shape(vocab_size), num_slots) {}

  Backend& backend() { return driver_.backend(); }

  // Draws from every slot in `slots` for the given input tokens, in one step.
  std::vector<SampledToken> Draw(const std::vector<int32_t>& slots,
                                 const std::vector<int32_t>& input_token_ids) {
    std::vector<SequenceChunk> chunks;
    for (size_t i = 0; i < slots.size(); ++i) {
      TestSequence& sequence = sequences_[static_cast<size_t>(slots[i])];
      sequence.token_ids[0] = input_token_ids[i];
      chunks.push_back(sequence.LastToken());
    }
    return driver_.Run(chunks, {});
  }
  std::vector<float> Logits(size_t n = 0) { return driver_.Logits(n); }

  void Bind(int32_t slot, const SamplingParams& params, const SamplerHistory& history = {}) {
    const absl::Status status =
        backend().BindSampler(slot, params, history.prompt, history.generated);
    EXPECT_TRUE(status.ok()) << status;
  }

 private:
  static ModelShape Shape(int32_t vocab_size) {
    ModelShape shape = MakeShape(1, 1, 1, 64);
    shape.vocab_size = vocab_size;
    return shape;
  }
  static HostWeights Weights(const ModelShape& shape) {
    HostWeights weights(shape, 21);
    // The last token's logits equal the first one's: ties.
    const absl::Span<float> head = HostWeights::Elements(weights.views().lm_head);
    const size_t hidden = static_cast<size_t>(shape.hidden_size);
    std::copy_n(head.begin(), hidden, head.end() - static_cast<std::ptrdiff_t>(hidden));
    for (float& weight : head) weight *= 2.0f;  // peaked distributions
    return weights;
  }
  SamplerDriver(const BackendUnderTest& under_test, const ModelShape& shape, int32_t num_slots)
      : weights_(Weights(shape)),
        driver_(under_test, shape, weights_.views(), {num_slots, num_slots, 16}, num_slots) {
    for (int32_t slot = 0; slot < num_slots; ++slot) {
      sequences_.push_back(driver_.MakeSequence(1, slot));
    }
  }

  HostWeights weights_;
  StepDriver driver_;
  std::vector<TestSequence> sequences_;
};

SamplingParams RandomParams(std::mt19937_64& random, int32_t vocab_size) {
  const auto uniform = [&](double low, double high) {
    return static_cast<float>(std::uniform_real_distribution<double>(low, high)(random));
  };
  const auto token = [&] {
    return std::uniform_int_distribution<int32_t>(0, vocab_size - 1)(random);
  };
  const auto sometimes = [&] { return random() % 3 == 0; };
  SamplingParams params;
  params.seed = random();
  params.temperature = sometimes() ? 0.0f : uniform(0.3, 2.0);
  if (sometimes()) params.top_k = 1 + token();
  if (sometimes()) params.top_p = uniform(0.05, 1.0);
  if (sometimes()) params.min_p = uniform(0.0, 0.5);
  if (sometimes()) params.repetition_penalty = uniform(0.5, 2.0);
  if (sometimes()) params.presence_penalty = uniform(-2.0, 2.0);
  if (sometimes()) params.frequency_penalty = uniform(-2.0, 2.0);
  for (int i = 0; i < 5 && sometimes(); ++i) {
    params.logit_bias.push_back({token(), uniform(-5.0, 5.0)});
  }
  if (sometimes()) {
    params.min_new_tokens = 1 + token() % 6;
    for (int i = 0; i < 40; ++i) params.suppressed_token_ids.push_back(token());
  }
  params.return_logprobs = sometimes();
  if (params.return_logprobs) params.num_top_logprobs = token() % (kMaxTopLogprobs + 1);
  return params;
}

void ExpectSameLogprobs(const SampledToken& expected, const SampledToken& actual) {
  // The logits are the backend's own, so float32's rounding alone remains.
  EXPECT_NEAR(expected.logprob, actual.logprob, 1e-5);
  ASSERT_EQ(expected.top_logprobs.size(), actual.top_logprobs.size());
  for (size_t i = 0; i < expected.top_logprobs.size(); ++i) {
    EXPECT_EQ(expected.top_logprobs[i].token_id, actual.top_logprobs[i].token_id);
    EXPECT_NEAR(expected.top_logprobs[i].logprob, actual.top_logprobs[i].logprob, 1e-5);
  }
}

TEST_P(BackendConformance, SamplesAsThePlainReferenceForRandomOptions) {
  const int32_t vocab_size = 301;
  const int32_t num_slots = 8;
  SamplerDriver driver(GetParam(), vocab_size, num_slots);
  std::mt19937_64 random(5);
  const auto token = [&] { return static_cast<int32_t>(random() % vocab_size); };
  for (int round = 0; round < 60; ++round) {
    std::vector<SamplingParams> params;
    std::vector<SamplerHistory> histories;
    std::vector<int32_t> slots;
    for (int32_t slot = 0; slot < num_slots; ++slot) {
      params.push_back(RandomParams(random, vocab_size));
      SamplerHistory history;
      for (uint64_t i = random() % 50; i > 0; --i) history.prompt.push_back(token());
      for (uint64_t i = random() % 5; i > 0; --i) history.generated.push_back(token());
      driver.Bind(slot, params.back(), history);
      histories.push_back(history);
      slots.push_back(slot);
    }
    std::shuffle(slots.begin(), slots.end(), random);
    for (int step = 0; step < 4; ++step) {
      std::vector<int32_t> inputs;
      for (int32_t i = 0; i < num_slots; ++i) inputs.push_back(token());
      const std::vector<SampledToken> drawn = driver.Draw(slots, inputs);
      for (size_t i = 0; i < slots.size(); ++i) {
        const size_t slot = static_cast<size_t>(slots[i]);
        const SampledToken expected =
            ReferenceSample(params[slot], histories[slot], driver.Logits(i));
        EXPECT_EQ(expected.token_id, drawn[i].token_id) << "round " << round;
        if (params[slot].return_logprobs) ExpectSameLogprobs(expected, drawn[i]);
        histories[slot].generated.push_back(drawn[i].token_id);
      }
    }
  }
}

TEST_P(BackendConformance, DrawsFromTheFilteredDistribution) {
  const int32_t vocab_size = 40;
  const int32_t num_slots = 100;
  SamplerDriver driver(GetParam(), vocab_size, num_slots);
  std::vector<SamplingParams> cases(4);
  cases[1].temperature = 1.7f;
  cases[2].top_k = 7;
  cases[2].top_p = 0.9f;
  cases[3].min_p = 0.05f;
  std::vector<int32_t> slots;
  for (int32_t slot = 0; slot < num_slots; ++slot) slots.push_back(slot);
  const std::vector<int32_t> inputs(static_cast<size_t>(num_slots), 3);
  for (const SamplingParams& base : cases) {
    std::vector<double> counts(static_cast<size_t>(vocab_size));
    const int rounds = 60;
    for (int round = 0; round < rounds; ++round) {
      for (const int32_t slot : slots) {
        SamplingParams params = base;
        params.seed = static_cast<uint64_t>(round * num_slots + slot);
        driver.Bind(slot, params);
      }
      for (const SampledToken& drawn : driver.Draw(slots, inputs)) {
        ++counts[static_cast<size_t>(drawn.token_id)];
      }
    }
    const KeptTokens kept = ReferenceKeep(base, {}, driver.Logits());
    double total = 0;
    for (const int32_t id : kept.ids) total += std::exp(kept.logits[static_cast<size_t>(id)]);
    double chi_square = 0;
    double expected_of_rare = 0;
    double count_of_rare = 0;
    int cells = 1;
    double num_kept = 0;
    for (const int32_t id : kept.ids) {
      const double count = counts[static_cast<size_t>(id)];
      const double expected =
          num_slots * rounds * std::exp(kept.logits[static_cast<size_t>(id)]) / total;
      num_kept += count;
      if (expected < 8) {
        expected_of_rare += expected;
        count_of_rare += count;
      } else {
        chi_square += (count - expected) * (count - expected) / expected;
        ++cells;
      }
    }
    if (expected_of_rare > 0) {
      chi_square += std::pow(count_of_rare - expected_of_rare, 2) / expected_of_rare;
    }
    EXPECT_EQ(num_kept, num_slots * rounds) << "a token was drawn that the options drop";
    // Chi-square has mean and half its variance at its degrees of freedom: five deviations.
    EXPECT_LT(chi_square, cells + 5 * std::sqrt(2.0 * cells));
  }
}

TEST_P(BackendConformance, SameSeedSameTokensInAnyRow) {
  const int32_t vocab_size = 301;
  SamplerDriver driver(GetParam(), vocab_size, 6);
  SamplingParams params;
  params.seed = 99;
  std::vector<std::vector<int32_t>> runs;
  for (const std::vector<int32_t>& slots :
       {std::vector<int32_t>{0}, {3, 1, 5}, {5, 4, 3, 2, 1, 0}}) {
    for (const int32_t slot : slots) {
      SamplingParams other = params;
      other.seed = slot == slots.back() ? 99 : 1000 + static_cast<uint64_t>(slot);
      driver.Bind(slot, other);
    }
    runs.emplace_back();
    for (int step = 0; step < 30; ++step) {
      const std::vector<int32_t> inputs(slots.size(), step);
      runs.back().push_back(driver.Draw(slots, inputs).back().token_id);
    }
  }
  EXPECT_EQ(runs[0], runs[1]);
  EXPECT_EQ(runs[0], runs[2]);
  params.seed = 100;
  driver.Bind(0, params);
  std::vector<int32_t> other_seed;
  for (int step = 0; step < 30; ++step) {
    other_seed.push_back(driver.Draw({0}, {step})[0].token_id);
  }
  EXPECT_NE(runs[0], other_seed);
}

TEST_P(BackendConformance, ResumesAHistoryWhereItWasLeft) {
  SamplerDriver driver(GetParam(), 301, 2);
  SamplingParams params;
  params.seed = 4;
  params.frequency_penalty = 0.7f;
  params.repetition_penalty = 1.3f;
  params.min_new_tokens = 6;
  params.suppressed_token_ids = {1, 2, 3, 4, 5};
  SamplerHistory history = {{7, 8, 9}, {}};
  driver.Bind(0, params, history);
  for (int step = 0; step < 10; ++step) {
    driver.Bind(1, params, history);
    const std::vector<SampledToken> drawn = driver.Draw({0, 1}, {step, step});
    EXPECT_EQ(drawn[0].token_id, drawn[1].token_id);
    history.generated.push_back(drawn[0].token_id);
  }
}

TEST_P(BackendConformance, GreedyTiesGoToTheLowerToken) {
  const int32_t vocab_size = 301;
  SamplerDriver driver(GetParam(), vocab_size, 1);
  SamplingParams params;
  params.temperature = 0.0f;
  // Tokens 0 and 300 have equal logits.
  params.logit_bias = {{0, 50.0f}, {300, 50.0f}};
  driver.Bind(0, params);
  EXPECT_EQ(driver.Draw({0}, {11})[0].token_id, 0);
  params.logit_bias = {{300, 50.0f}};
  driver.Bind(0, params);
  EXPECT_EQ(driver.Draw({0}, {11})[0].token_id, 300);
}

TEST_P(BackendConformance, RefusesSamplersOutOfRange) {
  SamplerDriver driver(GetParam(), 301, 2);
  Backend& backend = driver.backend();
  const std::vector<int32_t> bad_token = {301};
  SamplingParams params;
  EXPECT_EQ(backend.BindSampler(2, params, {}, {}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(backend.BindSampler(-1, params, {}, {}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(backend.BindSampler(0, params, bad_token, {}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(backend.BindSampler(0, params, {}, bad_token).code(),
            absl::StatusCode::kInvalidArgument);
  params.logit_bias = {{-1, 1.0f}};
  EXPECT_EQ(backend.BindSampler(0, params, {}, {}).code(), absl::StatusCode::kInvalidArgument);
  params.logit_bias.clear();
  params.num_top_logprobs = kMaxTopLogprobs + 1;
  EXPECT_EQ(backend.BindSampler(0, params, {}, {}).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace tidal::testing
