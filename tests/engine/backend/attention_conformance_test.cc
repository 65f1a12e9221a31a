// Attention on one layer, against float64: full, select and sparse, contexts and shapes of all
// kinds, mixed batches. The cache is filled without attention where only the decode matters.

#include <algorithm>
#include <iterator>
#include <vector>

#include "gtest/gtest.h"
#include "tests/engine/backend/reference_model.h"
#include "tests/engine/backend/step_driver.h"

namespace tidal::testing {
namespace {

using LayerKinds = StepDriver::LayerKinds;

constexpr LayerKinds kFullLayer = {};
constexpr LayerKinds kSelectLayer = {AttentionKind::kFull, AttentionKind::kSelect};
constexpr Stages kAttentionOnly = {.attention = true, .mlp = false};

ReferenceStep AttentionStep(absl::Span<const int32_t> token_ids, AttentionKind kind,
                            const Selection& selection) {
  return {.token_ids = token_ids, .kinds = {kind}, .selection = selection, .mlp = false};
}

// What the reference makes of all the sequence's tokens but the last, and then of the last.
ReferenceResult ReferenceDecode(const ReferenceModel& model, const TestSequence& sequence,
                                AttentionKind kind, const Selection& selection,
                                const std::vector<std::vector<int32_t>>* positions = nullptr) {
  ReferenceSequence state;
  const absl::Span<const int32_t> tokens = sequence.token_ids;
  if (tokens.size() > 1) {
    model.Run(AttentionStep(tokens.first(tokens.size() - 1), AttentionKind::kFull, {}), &state);
  }
  ReferenceStep step = AttentionStep(tokens.last(1), kind, selection);
  step.positions = positions;
  return model.Run(step, &state);
}

// A selection that differs from the reference's may do so only among scores that are nearly equal
// to the threshold: relative to it for probabilities, absolute for raw scores.
void ExpectSameSelection(const ReferenceSelection& expected, const Selection& selection,
                         double tolerance, const std::vector<std::vector<int32_t>>& actual) {
  ASSERT_EQ(expected.positions.size(), actual.size());
  for (size_t set = 0; set < actual.size(); ++set) {
    const std::vector<int32_t>& wanted = expected.positions[set];
    const std::vector<int32_t>& got = actual[set];
    ASSERT_EQ(wanted.size(), got.size());
    ASSERT_TRUE(std::is_sorted(got.begin(), got.end()));
    ASSERT_EQ(std::adjacent_find(got.begin(), got.end()), got.end());
    const std::vector<double>& scores = expected.scores[set];
    const int32_t context = static_cast<int32_t>(scores.size());
    const int32_t first_recent = context - std::max(selection.num_recent_tokens, 1);
    for (int32_t t = 0; t < selection.num_sink_tokens; ++t) {
      EXPECT_TRUE(std::binary_search(got.begin(), got.end(), t)) << "sink " << t;
    }
    for (int32_t t = first_recent; t < context; ++t) {
      EXPECT_TRUE(std::binary_search(got.begin(), got.end(), t)) << "recent " << t;
    }
    double threshold = 1e300;
    for (const int32_t t : wanted) {
      if (t >= selection.num_sink_tokens && t < first_recent) {
        threshold = std::min(threshold, scores[static_cast<size_t>(t)]);
      }
    }
    std::vector<int32_t> differing;
    std::set_symmetric_difference(wanted.begin(), wanted.end(), got.begin(), got.end(),
                                  std::back_inserter(differing));
    const double scale = selection.scope == SelectionScope::kQueryHead ? 1.0 : threshold;
    for (const int32_t t : differing) {
      EXPECT_NEAR(scores[static_cast<size_t>(t)], threshold, tolerance * scale)
          << "set " << set << " position " << t;
    }
  }
}

struct HeadCounts {
  int32_t query;
  int32_t kv;
};

// MHA and groups of 1 to 8.
constexpr HeadCounts kHeadCounts[] = {{2, 2}, {4, 2}, {3, 1}, {4, 1},
                                      {5, 1}, {6, 1}, {7, 1}, {8, 1}};

TEST_P(BackendConformance, DecodesWithFullAttentionForEveryShapeAndContext) {
  int number = 0;
  for (const int32_t head_dim : GetParam().head_dims) {
    for (const HeadCounts heads : kHeadCounts) {
      const ModelShape shape = MakeShape(1, heads.query, heads.kv, head_dim);
      const HostWeights weights(shape, 7);
      const ReferenceModel reference(shape, weights.views());
      for (const int32_t context : {1, 2, 15, 16, 17, 33, 530}) {
        if (!GetParam().RunsCase(number++)) continue;
        SCOPED_TRACE(::testing::Message() << "head_dim " << head_dim << ", heads " << heads.query
                                          << "/" << heads.kv << ", context " << context);
        StepDriver driver(GetParam(), shape, weights.views(), {256, 4, 600}, 40);
        const TestSequence sequence = driver.MakeSequence(context, 0);
        driver.FillCache(sequence, context - 1);
        driver.Run({sequence.LastToken()}, {kFullLayer}, kAttentionOnly);
        const ReferenceResult expected =
            ReferenceDecode(reference, sequence, AttentionKind::kFull, {});
        EXPECT_LE(MaxError(expected.logits, driver.Logits()), GetParam().Tolerance(1e-5, 3e-2));
      }
    }
  }
}

TEST_P(BackendConformance, PrefillsChunksOfEveryLength) {
  for (const int32_t head_dim : GetParam().head_dims) {
    const ModelShape shape = MakeShape(1, 4, 2, head_dim);
    const HostWeights weights(shape, 8);
    const ReferenceModel reference(shape, weights.views());
    StepDriver driver(GetParam(), shape, weights.views(), {512, 4, 2048}, 400);
    // Chunk lengths around blocks and tiles; every chunk's last token is compared.
    const TestSequence sequence = driver.MakeSequence(1500, 0);
    ReferenceSequence state;
    int32_t begin = 0;
    for (const int32_t length : {1, 2, 13, 1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 300, 511}) {
      const int32_t end = begin + length;
      SCOPED_TRACE(::testing::Message()
                   << "head_dim " << head_dim << ", tokens " << begin << " to " << end);
      driver.Run({sequence.Chunk(begin, end, true)}, {kFullLayer}, kAttentionOnly);
      const auto tokens = absl::MakeConstSpan(sequence.token_ids)
                              .subspan(static_cast<size_t>(begin), static_cast<size_t>(length));
      const ReferenceResult expected =
          reference.Run(AttentionStep(tokens, AttentionKind::kFull, {}), &state);
      EXPECT_LE(MaxError(expected.logits, driver.Logits()), GetParam().Tolerance(1e-5, 3e-2));
      begin = end;
    }
  }
}

TEST_P(BackendConformance, SelectsThePositionsOfTheReference) {
  int number = 0;
  struct Case {
    int32_t context;
    Selection selection;
  };
  const SelectionScope kQueryHead = SelectionScope::kQueryHead;
  const SelectionScope kKvHead = SelectionScope::kKvHead;
  const SelectionScope kLayer = SelectionScope::kLayer;
  const Case cases[] = {
      {2, {kQueryHead, 1, 0, 0}},       {17, {kQueryHead, 16, 0, 0}},
      {300, {kQueryHead, 1, 0, 0}},     {300, {kQueryHead, 2, 1, 0}},
      {300, {kQueryHead, 299, 0, 0}},   {1000, {kQueryHead, 64, 4, 8}},
      {1000, {kQueryHead, 12, 4, 8}},   {2, {kKvHead, 1, 0, 1}},
      {300, {kKvHead, 33, 0, 0}},       {1000, {kKvHead, 256, 16, 16}},
      {1000, {kKvHead, 999, 0, 999}},   {1000, {kKvHead, 17, 16, 1}},
      {5000, {kKvHead, 4096, 0, 0}},    {5000, {kQueryHead, 4096, 100, 3996}},
      {3001, {kQueryHead, 512, 0, 64}}, {2, {kLayer, 1, 0, 0}},
      {300, {kLayer, 33, 0, 0}},        {1000, {kLayer, 256, 16, 16}},
      {1000, {kLayer, 17, 16, 1}},      {5000, {kLayer, 4096, 4, 1000}},
  };
  for (const HeadCounts heads : {HeadCounts{2, 2}, HeadCounts{6, 2}}) {
    const ModelShape shape = MakeShape(1, heads.query, heads.kv, 64);
    const HostWeights weights(shape, 9);
    const ReferenceModel reference(shape, weights.views());
    for (const Case& c : cases) {
      if (!GetParam().RunsCase(number++)) continue;
      SCOPED_TRACE(::testing::Message()
                   << "heads " << heads.query << "/" << heads.kv << ", context " << c.context
                   << ", budget " << c.selection.token_budget << ", scope "
                   << static_cast<int>(c.selection.scope));
      StepDriver driver(GetParam(), shape, weights.views(), {512, 2, 5000}, 400);
      if (!driver.Serves(AttentionMode::kTidal, c.selection.scope)) continue;
      const TestSequence sequence = driver.MakeSequence(c.context, 1);
      driver.FillCache(sequence, c.context - 1);
      driver.Run({sequence.LastToken(c.selection)}, {kSelectLayer}, kAttentionOnly);
      const ReferenceResult expected =
          ReferenceDecode(reference, sequence, AttentionKind::kSelect, c.selection);
      ExpectSameSelection(expected.selections[0], c.selection, GetParam().Tolerance(1e-5, 2e-2),
                          driver.SelectionOf(0));
      // A select layer's output is full attention's.
      EXPECT_LE(MaxError(expected.logits, driver.Logits()), GetParam().Tolerance(1e-5, 3e-2));
    }
  }
}

TEST_P(BackendConformance, BreaksTiesToTheLowerPosition) {
  int number = 0;
  ModelShape shape = MakeShape(1, 4, 2, 64);
  // Without rotation equal tokens have equal keys, to the last bit.
  std::fill(shape.rope_inverse_frequencies.begin(), shape.rope_inverse_frequencies.end(), 0.0f);
  const HostWeights weights(shape, 10);
  const ReferenceModel reference(shape, weights.views());
  for (const SelectionScope scope :
       {SelectionScope::kQueryHead, SelectionScope::kKvHead, SelectionScope::kLayer}) {
    for (const int32_t num_distinct : {1, 3, 40}) {
      for (const int32_t budget : {1, 5, 100, 400}) {
        if (!GetParam().RunsCase(number++)) continue;
        StepDriver driver(GetParam(), shape, weights.views(), {512, 1, 777}, 49);
        if (!driver.Serves(AttentionMode::kTidal, scope)) continue;
        TestSequence sequence = driver.MakeSequence(777, 0);
        for (int32_t& token : sequence.token_ids) token %= num_distinct;
        driver.FillCache(sequence, 776);
        const Selection selection = {scope, budget, 0, 0};
        driver.Run({sequence.LastToken(selection)}, {kSelectLayer}, kAttentionOnly);
        const ReferenceResult expected =
            ReferenceDecode(reference, sequence, AttentionKind::kSelect, selection);
        EXPECT_EQ(expected.selections[0].positions, driver.SelectionOf(0))
            << num_distinct << " distinct tokens, budget " << budget;
      }
    }
  }
}

// Runs select and then sparse on the same layer: the sparse output replaces select's.
std::vector<float> SparseLogits(StepDriver* driver, const std::vector<SequenceChunk>& chunks) {
  StepBatch batch;
  batch.chunks = chunks;
  std::vector<SampledToken> sampled;
  Backend& backend = driver->backend();
  EXPECT_TRUE(backend.BeginStep(batch).ok());
  EXPECT_TRUE(backend.Embed().ok());
  EXPECT_TRUE(backend.AttentionInput(0).ok());
  for (const AttentionKind kind : {AttentionKind::kSelect, AttentionKind::kSparse}) {
    AttentionPass pass;
    pass.kind_of_mode = {AttentionKind::kFull, kind, AttentionKind::kQuest};
    EXPECT_TRUE(backend.Attention(0, pass).ok());
  }
  EXPECT_TRUE(backend.AttentionOutput(0).ok());
  EXPECT_TRUE(backend.Sample().ok());
  EXPECT_TRUE(backend.EndStep(&sampled).ok());
  return driver->Logits();
}

TEST_P(BackendConformance, SparseAttentionEqualsMaskedAttention) {
  int number = 0;
  for (const int32_t head_dim : GetParam().head_dims) {
    for (const HeadCounts heads : kHeadCounts) {
      const ModelShape shape = MakeShape(1, heads.query, heads.kv, head_dim);
      const HostWeights weights(shape, 11);
      const ReferenceModel reference(shape, weights.views());
      for (const SelectionScope scope :
           {SelectionScope::kQueryHead, SelectionScope::kKvHead, SelectionScope::kLayer}) {
        for (const int32_t budget : {1, 15, 16, 17, 255, 257, 600}) {
          if (!GetParam().RunsCase(number++)) continue;
          SCOPED_TRACE(::testing::Message() << "head_dim " << head_dim << ", heads " << heads.query
                                            << "/" << heads.kv << ", budget " << budget);
          StepDriver driver(GetParam(), shape, weights.views(), {512, 2, 900}, 60);
          if (!driver.Serves(AttentionMode::kTidal, scope)) continue;
          const TestSequence sequence = driver.MakeSequence(801, 0);
          driver.FillCache(sequence, 800);
          const std::vector<float> logits =
              SparseLogits(&driver, {sequence.LastToken({scope, budget, 0, 0})});
          const std::vector<std::vector<int32_t>> positions = driver.SelectionOf(0);
          const ReferenceResult expected =
              ReferenceDecode(reference, sequence, AttentionKind::kSparse, {}, &positions);
          EXPECT_LE(MaxError(expected.logits, logits), GetParam().Tolerance(1e-5, 3e-2));
        }
      }
    }
  }
}

TEST_P(BackendConformance, AttendsOneHundredThousandTokens) {
  const int32_t context = 100'003;
  const ModelShape shape = MakeShape(1, 2, 1, 64);
  const HostWeights weights(shape, 12);
  const ReferenceModel reference(shape, weights.views());
  StepDriver driver(GetParam(), shape, weights.views(), {2048, 1, context}, 6300);
  const TestSequence sequence = driver.MakeSequence(context, 0);
  driver.FillCache(sequence, context - 1);
  const Selection selection = {SelectionScope::kKvHead, 512, 4, 32};
  ReferenceSequence state;
  const absl::Span<const int32_t> tokens = sequence.token_ids;
  reference.Run(AttentionStep(tokens.first(tokens.size() - 1), AttentionKind::kFull, {}), &state);
  ReferenceSequence copy = state;
  const ReferenceResult full =
      reference.Run(AttentionStep(tokens.last(1), AttentionKind::kSelect, selection), &copy);

  driver.Run({sequence.LastToken(selection)}, {kSelectLayer}, kAttentionOnly);
  EXPECT_LE(MaxError(full.logits, driver.Logits()), GetParam().Tolerance(1e-5, 3e-2));
  const std::vector<std::vector<int32_t>> positions = driver.SelectionOf(0);
  ExpectSameSelection(full.selections[0], selection, GetParam().Tolerance(1e-5, 2e-2), positions);

  const std::vector<float> sparse_logits = SparseLogits(&driver, {sequence.LastToken(selection)});
  ReferenceStep sparse = AttentionStep(tokens.last(1), AttentionKind::kSparse, selection);
  sparse.positions = &positions;
  EXPECT_LE(MaxError(reference.Run(sparse, &state).logits, sparse_logits),
            GetParam().Tolerance(1e-5, 3e-2));
}

}  // namespace
}  // namespace tidal::testing
