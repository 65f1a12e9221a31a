// The other stages and whole models against float64: products, biases, several layers with a plan,
// mixed batches, and what must not change a result.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "gtest/gtest.h"
#include "tests/engine/backend/reference_model.h"
#include "tests/engine/backend/step_driver.h"

namespace tidal::testing {
namespace {

using LayerKinds = StepDriver::LayerKinds;

constexpr LayerKinds kFullLayer = {};
constexpr LayerKinds kSelectLayer = {AttentionKind::kFull, AttentionKind::kSelect};
constexpr LayerKinds kSparseLayer = {AttentionKind::kFull, AttentionKind::kSparse};

// A plan with every kind: full, select, sparse, select again, sparse.
const std::vector<LayerKinds> kPlan = {kFullLayer, kSelectLayer, kSparseLayer, kSelectLayer,
                                       kSparseLayer};

std::vector<AttentionKind> KindsOf(AttentionMode mode) {
  std::vector<AttentionKind> kinds;
  for (const LayerKinds& layer : kPlan) {
    kinds.push_back(mode == AttentionMode::kTidal ? layer.tidal : layer.full);
  }
  return kinds;
}

TEST_P(BackendConformance, EmbedsAndProjectsToLogits) {
  for (const bool tied : {false, true}) {
    for (const int32_t num_sequences : {1, 2, 11, 12, 13, 37}) {
      ModelShape shape = MakeShape(1, 2, 1, 64);
      shape.tied_embeddings = tied;
      const HostWeights weights(shape, 1);
      const ReferenceModel reference(shape, weights.views());
      StepDriver driver(GetParam(), shape, weights.views(), {64, 40, 16}, 40);
      std::vector<TestSequence> sequences;
      std::vector<SequenceChunk> chunks;
      for (int32_t i = 0; i < num_sequences; ++i) sequences.push_back(driver.MakeSequence(1, i));
      for (const TestSequence& sequence : sequences) chunks.push_back(sequence.LastToken());
      driver.Run(chunks, {});
      for (size_t i = 0; i < sequences.size(); ++i) {
        ReferenceSequence state;
        const ReferenceResult expected =
            reference.Run({.token_ids = sequences[i].token_ids, .kinds = {}}, &state);
        EXPECT_LE(MaxError(expected.logits, driver.Logits(i)), GetParam().Tolerance(5e-6, 3e-2));
      }
    }
  }
}

TEST_P(BackendConformance, ComputesTheMlpWithAndWithoutBias) {
  for (const bool bias : {false, true}) {
    for (const int32_t intermediate_size : {100, 96, 31}) {
      ModelShape shape = MakeShape(1, 2, 1, 64);
      const int32_t multiple = GetParam().intermediate_multiple;
      shape.intermediate_size = (intermediate_size + multiple - 1) / multiple * multiple;
      shape.mlp_bias = bias;
      const HostWeights weights(shape, 2);
      const ReferenceModel reference(shape, weights.views());
      StepDriver driver(GetParam(), shape, weights.views(), {64, 4, 64}, 10);
      const TestSequence sequence = driver.MakeSequence(45, 0);
      driver.Run({sequence.Chunk(0, 45, true)}, {kFullLayer}, {.attention = false});
      ReferenceSequence state;
      const ReferenceResult expected = reference.Run(
          {.token_ids = sequence.token_ids, .kinds = {AttentionKind::kFull}, .attention = false},
          &state);
      EXPECT_LE(MaxError(expected.logits, driver.Logits()), GetParam().Tolerance(1e-5, 5e-2));
    }
  }
}

TEST_P(BackendConformance, AddsAttentionBiases) {
  ModelShape shape = MakeShape(1, 4, 2, 64);
  shape.attention_qkv_bias = true;
  shape.attention_output_bias = true;
  const HostWeights weights(shape, 3);
  const ReferenceModel reference(shape, weights.views());
  StepDriver driver(GetParam(), shape, weights.views(), {64, 4, 64}, 10);
  const TestSequence sequence = driver.MakeSequence(37, 0);
  driver.Run({sequence.Chunk(0, 37, true)}, {kFullLayer});
  ReferenceSequence state;
  const ReferenceResult expected =
      reference.Run({.token_ids = sequence.token_ids, .kinds = {AttentionKind::kFull}}, &state);
  EXPECT_LE(MaxError(expected.logits, driver.Logits()), GetParam().Tolerance(1e-5, 5e-2));
}

TEST_P(BackendConformance, ReadsWeightsOfEveryTypeAtOddAddresses) {
  const ModelShape shape = MakeShape(1, 2, 1, 64);
  const HostWeights weights(shape, 4);
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    // The embedding alone in another type, one byte off any alignment. Multiples of 1/16 are exact
    // in all of them.
    ModelWeights views = weights.views();
    std::vector<std::byte> bytes(views.embedding.num_elements() * 4 + 1);
    std::vector<float> values;
    for (int64_t i = 0; i < views.embedding.num_elements(); ++i) {
      values.push_back(static_cast<float>(i * 37 % 255 - 127) / 16.0f);
      const uint32_t bits = std::bit_cast<uint32_t>(values.back());
      // Normal numbers and zero: move the exponent's bias from 127 to 15.
      const uint32_t half = values.back() == 0.0f ? 0
                                                  : (bits >> 16 & 0x8000u) |
                                                        (((bits >> 13) & 0x3ffffu) - (112u << 10));
      const uint32_t element = dtype == DType::kFloat32   ? bits
                               : dtype == DType::kFloat16 ? half & 0xffffu
                                                          : bits >> 16;
      std::memcpy(bytes.data() + 1 + static_cast<size_t>(i) * SizeOf(dtype), &element,
                  SizeOf(dtype));
    }
    views.embedding.bytes = bytes.data() + 1;
    views.embedding.dtype = dtype;
    ModelWeights plain = weights.views();
    plain.embedding.bytes = values.data();
    const ReferenceModel reference(shape, plain);
    StepDriver driver(GetParam(), shape, views, {64, 4, 64}, 10);
    const TestSequence sequence = driver.MakeSequence(1, 0);
    driver.Run({sequence.LastToken()}, {});
    ReferenceSequence state;
    const ReferenceResult expected =
        reference.Run({.token_ids = sequence.token_ids, .kinds = {}}, &state);
    EXPECT_LE(MaxError(expected.logits, driver.Logits()), GetParam().Tolerance(5e-6, 3e-2));
  }
}

TEST_P(BackendConformance, RunsMixedBatchesOfAWholeModel) {
  const ModelShape shape = MakeShape(5, 4, 2, 64);
  const HostWeights weights(shape, 5);
  const ReferenceModel reference(shape, weights.views());
  StepDriver driver(GetParam(), shape, weights.views(), {600, 8, 600}, 200);
  struct Row {
    int32_t context;
    int32_t chunk;
    Selection selection;  // budget 0: full
  };
  const Row rows[] = {
      {200, 1, {}},  {310, 1, {SelectionScope::kKvHead, 64, 0, 0}},
      {95, 95, {}},  {257, 1, {SelectionScope::kQueryHead, 31, 4, 8}},
      {130, 33, {}}, {40, 1, {SelectionScope::kKvHead, 39, 0, 0}},
  };
  std::vector<TestSequence> sequences;
  std::vector<SequenceChunk> chunks;
  for (const Row& row : rows) {
    sequences.push_back(driver.MakeSequence(row.context, static_cast<int32_t>(sequences.size())));
    if (row.context > row.chunk) {
      driver.Run({sequences.back().Chunk(0, row.context - row.chunk, false)}, kPlan);
    }
  }
  for (size_t i = 0; i < sequences.size(); ++i) {
    const TestSequence& sequence = sequences[i];
    chunks.push_back(rows[i].selection.token_budget > 0
                         ? sequence.LastToken(rows[i].selection)
                         : sequence.Chunk(rows[i].context - rows[i].chunk, rows[i].context, true));
  }
  driver.Run(chunks, kPlan);
  for (size_t i = 0; i < sequences.size(); ++i) {
    SCOPED_TRACE(::testing::Message() << "sequence " << i);
    ReferenceSequence state;
    const absl::Span<const int32_t> tokens = sequences[i].token_ids;
    const size_t before = tokens.size() - static_cast<size_t>(rows[i].chunk);
    if (before > 0) {
      reference.Run({.token_ids = tokens.first(before), .kinds = KindsOf(AttentionMode::kFull)},
                    &state);
    }
    const ReferenceResult expected = reference.Run({.token_ids = tokens.subspan(before),
                                                    .kinds = KindsOf(chunks[i].mode),
                                                    .selection = rows[i].selection},
                                                   &state);
    EXPECT_LE(MaxError(expected.logits, driver.Logits(i)), GetParam().Tolerance(5e-5, 1e-1));
  }
}

// Prefills the sequence in the given pieces and returns the logits of its last token.
std::vector<float> PrefillInPieces(StepDriver* driver, const TestSequence& sequence,
                                   const std::vector<int32_t>& pieces) {
  int32_t begin = 0;
  for (const int32_t piece : pieces) {
    driver->Run({sequence.Chunk(begin, begin + piece, true)}, kPlan);
    begin += piece;
  }
  return driver->Logits();
}

TEST_P(BackendConformance, PrefillDoesNotDependOnChunks) {
  const ModelShape shape = MakeShape(5, 6, 2, 64);
  const HostWeights weights(shape, 6);
  StepDriver driver(GetParam(), shape, weights.views(), {512, 1, 512}, 200);
  const TestSequence sequence = driver.MakeSequence(411, 0);
  const std::vector<float> whole = PrefillInPieces(&driver, sequence, {411});
  for (const std::vector<int32_t>& pieces :
       {std::vector<int32_t>{128, 128, 128, 27}, {2, 3, 12, 94, 100, 198, 2}, {255, 154, 2}}) {
    const std::vector<float> cut = PrefillInPieces(&driver, sequence, pieces);
    if (GetParam().bitwise_invariant) {
      EXPECT_EQ(whole, cut);
    } else {
      EXPECT_LE(MaxError(whole, cut), GetParam().Tolerance(1e-5, 3e-2));
    }
  }
  // A chunk of one token takes the decode's path.
  EXPECT_LE(MaxError(whole, PrefillInPieces(&driver, sequence, {1, 1, 408, 1})),
            GetParam().Tolerance(1e-5, 3e-2));
}

TEST_P(BackendConformance, ResultsDoNotDependOnTheBatch) {
  const ModelShape shape = MakeShape(5, 4, 2, 64);
  const HostWeights weights(shape, 13);
  StepDriver driver(GetParam(), shape, weights.views(), {700, 40, 1600}, 500);
  // Scores that nearly tie may pick another position when they are rounded otherwise: most of the
  // 1201 are picked, so that those at the border weigh little.
  const Selection selection = {SelectionScope::kKvHead, 1000, 0, 0};
  // The same tokens in other blocks.
  const TestSequence alone = driver.MakeSequence(1201, 0);
  TestSequence among = driver.MakeSequence(1201, 7);
  among.token_ids = alone.token_ids;
  std::vector<TestSequence> others;
  for (int32_t i = 0; i < 20; ++i) others.push_back(driver.MakeSequence(20 + i, 10 + i));
  for (int32_t begin = 0; begin < 1200; begin += 600) {
    driver.Run({alone.Chunk(begin, begin + 600, false)}, kPlan);
    driver.Run({others[0].Chunk(0, 19, true), among.Chunk(begin, begin + 600, false),
                others[1].Chunk(0, 20, true)},
               kPlan);
  }
  for (const bool tidal : {false, true}) {
    driver.Run({tidal ? alone.LastToken(selection) : alone.LastToken()}, kPlan);
    const std::vector<float> expected = driver.Logits();
    std::vector<SequenceChunk> chunks;
    for (const TestSequence& other : others) chunks.push_back(other.Chunk(0, 20, true));
    chunks.insert(chunks.begin() + 3, tidal ? among.LastToken(selection) : among.LastToken());
    driver.Run(chunks, kPlan);
    if (GetParam().bitwise_invariant) {
      EXPECT_EQ(expected, driver.Logits(3));
    } else {
      EXPECT_LE(MaxError(expected, driver.Logits(3)), GetParam().Tolerance(1e-5, 3e-2))
          << (tidal ? "tidal" : "full");
    }
  }
}

TEST_P(BackendConformance, RewritesCachedPositions) {
  const ModelShape shape = MakeShape(5, 4, 2, 64);
  const HostWeights weights(shape, 14);
  StepDriver driver(GetParam(), shape, weights.views(), {512, 2, 512}, 60);
  const TestSequence sequence = driver.MakeSequence(300, 0);
  driver.Run({sequence.Chunk(0, 299, false)}, kPlan);
  driver.Run({sequence.LastToken()}, kPlan);
  const std::vector<float> expected = driver.Logits();
  // Decode once more with sparse attention, which leaves other K and V at the last position, and
  // then correct it.
  driver.Run({sequence.LastToken({SelectionScope::kKvHead, 8, 0, 0})}, kPlan);
  EXPECT_GT(MaxError(expected, driver.Logits()), 1e-4);
  driver.Run({sequence.Chunk(280, 300, true)}, kPlan);
  EXPECT_LE(MaxError(expected, driver.Logits()), GetParam().Tolerance(1e-5, 3e-2));
}

TEST_P(BackendConformance, FeedsTheLastSampledTokenBack) {
  const ModelShape shape = MakeShape(5, 4, 2, 64);
  const HostWeights weights(shape, 15);
  StepDriver driver(GetParam(), shape, weights.views(), {512, 2, 512}, 60);
  TestSequence sequence = driver.MakeSequence(65, 1);
  const std::vector<SampledToken> first = driver.Run({sequence.Chunk(0, 64, true)}, kPlan);
  sequence.token_ids[64] = first[0].token_id;
  const std::vector<SampledToken> by_id = driver.Run({sequence.LastToken()}, kPlan);
  const std::vector<float> expected = driver.Logits();

  driver.Run({sequence.Chunk(0, 64, true)}, kPlan);
  sequence.token_ids[64] = kLastSampledToken;
  const std::vector<SampledToken> by_slot = driver.Run({sequence.LastToken()}, kPlan);
  EXPECT_EQ(expected, driver.Logits());
  EXPECT_EQ(by_id[0].token_id, by_slot[0].token_id);
}

TEST_P(BackendConformance, FillsRandomWeightsThatStayFinite) {
  ModelShape shape = MakeShape(5, 4, 2, 64);
  shape.attention_qkv_bias = true;
  const HostWeights weights(shape, 16);
  std::vector<float> logits_of_seed[3];
  for (const size_t run : {0u, 1u, 2u}) {
    StepDriver driver(GetParam(), shape, weights.views(), {512, 2, 512}, 60);
    ASSERT_TRUE(driver.backend().FillRandomWeights(run == 2 ? 43 : 42).ok());
    const TestSequence sequence = driver.MakeSequence(100, 0);
    driver.Run({sequence.Chunk(0, 100, true)}, kPlan);
    logits_of_seed[run] = driver.Logits();
    for (const float logit : logits_of_seed[run]) EXPECT_LT(std::abs(logit), 100.0f);
  }
  EXPECT_EQ(logits_of_seed[0], logits_of_seed[1]);
  EXPECT_NE(logits_of_seed[0], logits_of_seed[2]);
}

}  // namespace
}  // namespace tidal::testing
