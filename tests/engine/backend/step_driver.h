// Drives a backend through the seam as the engine does, stage by stage, for the conformance suite.
// The suite is written once and run on every backend: see BackendUnderTest.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/backend/backend.h"
#include "gtest/gtest.h"
#include "tests/engine/backend/reference_model.h"

namespace tidal::testing {

// What the suite is instantiated with.
struct BackendUnderTest {
  std::string name;
  std::function<absl::StatusOr<std::unique_ptr<Backend>>(const ModelShape&, const StepLimits&)>
      create;
  // Computes in float32; otherwise products and the cache are in bfloat16.
  bool float32 = true;
  // Whether a sequence's results are the same to the last bit whatever else is in the batch, and
  // however its prefill is cut.
  bool bitwise_invariant = true;
  std::vector<int32_t> head_dims = {64, 128};
  int32_t intermediate_multiple = 1;  // that intermediate_size must be of
  // Of the longest lists of cases, every how manieth is run: more than 1 where running is slow.
  int case_stride = 1;

  // Whether the case of this number is run.
  bool RunsCase(int number) const { return number % case_stride == 0; }

  // Each case names the tolerance of both precisions.
  double Tolerance(double in_float32, double in_bfloat16) const {
    return float32 ? in_float32 : in_bfloat16;
  }
};

void PrintTo(const BackendUnderTest& backend, std::ostream* out);

// A sequence with blocks scattered over the cache.
struct TestSequence {
  std::vector<int32_t> token_ids;
  std::vector<int32_t> blocks;
  int32_t slot = 0;

  int32_t num_tokens() const { return static_cast<int32_t>(token_ids.size()); }

  // The tokens begin .. end - 1, with full attention.
  SequenceChunk Chunk(int32_t begin, int32_t end, bool samples) const;
  SequenceChunk LastToken() const { return Chunk(num_tokens() - 1, num_tokens(), true); }
  SequenceChunk LastToken(const Selection& selection,
                          AttentionMode mode = AttentionMode::kTidal) const;
};

// Which stages of the layers run.
struct Stages {
  bool attention = true;
  bool mlp = true;
};

class StepDriver {
 public:
  // Creates a backend with the weights and a cache of num_blocks blocks.
  StepDriver(const BackendUnderTest& under_test, const ModelShape& shape,
             const ModelWeights& weights, const StepLimits& limits, int32_t num_blocks);

  Backend& backend() { return *backend_; }
  bool Serves(AttentionMode mode, SelectionScope scope) const {
    return backend_->CheckAttention(mode, {.scope = scope}).ok();
  }
  std::mt19937_64& random() { return random_; }

  // Random tokens and fresh blocks; greedy sampling.
  TestSequence MakeSequence(int32_t num_tokens, int32_t slot);

  // One step; `kinds` has a row for each layer that runs: its kind in full and in tidal mode. In
  // mode quest every layer runs kQuest.
  struct LayerKinds {
    AttentionKind full = AttentionKind::kFull;
    AttentionKind tidal = AttentionKind::kFull;
  };
  std::vector<SampledToken> Run(const std::vector<SequenceChunk>& chunks,
                                const std::vector<LayerKinds>& kinds, const Stages& stages = {});

  // Writes K and V of layer 0 for the sequence's first num_tokens tokens, without attention.
  void FillCache(const TestSequence& sequence, int32_t num_tokens);

  // The last step's logits of its n-th sampling chunk.
  std::vector<float> Logits(size_t n = 0);
  std::vector<std::vector<int32_t>> SelectionOf(int32_t chunk);

 private:
  ModelShape shape_;
  StepLimits limits_;
  std::unique_ptr<Backend> backend_;
  std::vector<int32_t> free_blocks_;
  std::mt19937_64 random_{20240607};
};

// The largest difference, relative to the largest expected value where that is above 1.
double MaxError(const std::vector<double>& expected, const std::vector<float>& actual);
double MaxError(const std::vector<float>& expected, const std::vector<float>& actual);

class BackendConformance : public ::testing::TestWithParam<BackendUnderTest> {};

}  // namespace tidal::testing
