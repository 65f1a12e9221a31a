#include "tests/engine/backend/step_driver.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <ostream>
#include <stdexcept>

namespace tidal::testing {

void PrintTo(const BackendUnderTest& backend, std::ostream* out) { *out << backend.name; }

SequenceChunk TestSequence::Chunk(int32_t begin, int32_t end, bool samples) const {
  SequenceChunk chunk;
  chunk.token_ids = absl::MakeConstSpan(token_ids).subspan(static_cast<size_t>(begin),
                                                           static_cast<size_t>(end - begin));
  chunk.num_context_tokens = end;
  chunk.block_table = blocks;
  chunk.sampler_slot = slot;
  chunk.samples = samples;
  return chunk;
}

SequenceChunk TestSequence::LastToken(const Selection& selection, AttentionMode mode) const {
  SequenceChunk chunk = LastToken();
  chunk.mode = mode;
  chunk.selection = selection;
  return chunk;
}

StepDriver::StepDriver(const BackendUnderTest& under_test, const ModelShape& shape,
                       const ModelWeights& weights, const StepLimits& limits, int32_t num_blocks)
    : shape_(shape), limits_(limits), free_blocks_(static_cast<size_t>(num_blocks)) {
  auto backend = under_test.create(shape, limits);
  if (!backend.ok()) throw std::runtime_error(backend.status().ToString());
  backend_ = *std::move(backend);
  EXPECT_TRUE(backend_->LoadWeights(weights).ok());
  EXPECT_TRUE(backend_->AllocateKvCache(num_blocks).ok());
  std::iota(free_blocks_.begin(), free_blocks_.end(), 0);
  std::shuffle(free_blocks_.begin(), free_blocks_.end(), random_);
}

TestSequence StepDriver::MakeSequence(int32_t num_tokens, int32_t slot) {
  TestSequence sequence;
  sequence.slot = slot;
  std::uniform_int_distribution<int32_t> token(0, shape_.vocab_size - 1);
  for (int32_t i = 0; i < num_tokens; ++i) sequence.token_ids.push_back(token(random_));
  for (int32_t i = 0; i < num_tokens; i += kBlockSize) {
    if (free_blocks_.empty()) throw std::runtime_error("the test's KV cache is too small");
    sequence.blocks.push_back(free_blocks_.back());
    free_blocks_.pop_back();
  }
  SamplingParams greedy;
  greedy.temperature = 0.0f;
  EXPECT_TRUE(backend_->BindSampler(slot, greedy, {}, {}).ok());
  return sequence;
}

std::vector<SampledToken> StepDriver::Run(const std::vector<SequenceChunk>& chunks,
                                          const std::vector<LayerKinds>& kinds,
                                          const Stages& stages) {
  StepBatch batch;
  batch.chunks = chunks;
  std::vector<SampledToken> sampled;
  const absl::Status begun = backend_->BeginStep(batch);
  EXPECT_TRUE(begun.ok()) << begun;
  EXPECT_TRUE(backend_->Embed().ok());
  for (size_t i = 0; i < kinds.size(); ++i) {
    const int32_t layer = static_cast<int32_t>(i);
    AttentionPass pass;
    pass.kind_of_mode = {kinds[i].full, kinds[i].tidal, AttentionKind::kQuest};
    if (stages.attention) {
      EXPECT_TRUE(backend_->AttentionInput(layer).ok());
      EXPECT_TRUE(backend_->Attention(layer, pass).ok());
      EXPECT_TRUE(backend_->AttentionOutput(layer).ok());
    }
    if (stages.mlp) {
      EXPECT_TRUE(backend_->Mlp(layer).ok());
    }
  }
  EXPECT_TRUE(backend_->Sample().ok());
  EXPECT_TRUE(backend_->EndStep(&sampled).ok());
  return sampled;
}

void StepDriver::FillCache(const TestSequence& sequence, int32_t num_tokens) {
  std::vector<SampledToken> sampled;
  for (int32_t begin = 0; begin < num_tokens; begin += limits_.max_batch_tokens) {
    StepBatch batch;
    const int32_t end = std::min(num_tokens, begin + limits_.max_batch_tokens);
    batch.chunks = {sequence.Chunk(begin, end, false)};
    EXPECT_TRUE(backend_->BeginStep(batch).ok());
    EXPECT_TRUE(backend_->Embed().ok());
    EXPECT_TRUE(backend_->AttentionInput(0).ok());
    EXPECT_TRUE(backend_->EndStep(&sampled).ok());
  }
}

std::vector<float> StepDriver::Logits(size_t n) {
  std::vector<float> logits;
  EXPECT_TRUE(backend_->ReadLogits(&logits).ok());
  const auto begin = logits.begin() + static_cast<std::ptrdiff_t>(n) * shape_.vocab_size;
  return {begin, begin + shape_.vocab_size};
}

std::vector<std::vector<int32_t>> StepDriver::SelectionOf(int32_t chunk) {
  std::vector<std::vector<int32_t>> positions;
  EXPECT_TRUE(backend_->ReadSelection(chunk, &positions).ok());
  return positions;
}

double MaxError(const std::vector<double>& expected, const std::vector<float>& actual) {
  EXPECT_EQ(expected.size(), actual.size());
  double error = 0.0;
  double scale = 1.0;
  for (size_t i = 0; i < expected.size(); ++i) {
    scale = std::max(scale, std::abs(expected[i]));
    const double difference = std::abs(expected[i] - double{actual[i]});
    // A NaN must not compare as small.
    if (!(difference <= error)) error = difference;
  }
  return error / scale;
}

double MaxError(const std::vector<float>& expected, const std::vector<float>& actual) {
  return MaxError(std::vector<double>(expected.begin(), expected.end()), actual);
}

}  // namespace tidal::testing
