// Quest, and all methods in one batch, against float64: any lengths, budgets, groups of heads, and
// kept positions, across the borders of blocks. A backend that does not serve a method refuses it
// by name.

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/engine/backend/reference_model.h"
#include "tests/engine/backend/step_driver.h"

namespace tidal::testing {
namespace {

using LayerKinds = StepDriver::LayerKinds;

constexpr LayerKinds kFullLayer = {};
constexpr Stages kAttentionOnly = {.attention = true, .mlp = false};

ReferenceStep QuestStep(absl::Span<const int32_t> token_ids, AttentionKind kind,
                        const Selection& selection) {
  return {.token_ids = token_ids, .kinds = {kind}, .selection = selection, .mlp = false};
}

// The step of the last token, after a cache that attention has not touched.
ReferenceResult ReferenceQuest(const ReferenceModel& model, const TestSequence& sequence,
                               const Selection& selection,
                               const std::vector<std::vector<int32_t>>* positions = nullptr) {
  ReferenceSequence state;
  const absl::Span<const int32_t> tokens = sequence.token_ids;
  model.Run(QuestStep(tokens.first(tokens.size() - 1), AttentionKind::kFull, {}), &state);
  ReferenceStep step = QuestStep(tokens.last(1), AttentionKind::kQuest, selection);
  step.positions = positions;
  return model.Run(step, &state);
}

// Blocks that differ from the reference's may do so only among bounds nearly equal to the lowest
// chosen one.
void ExpectSameBlocks(const ReferenceSelection& expected, double tolerance,
                      const std::vector<std::vector<int32_t>>& actual) {
  ASSERT_EQ(expected.positions.size(), actual.size());
  for (size_t head = 0; head < actual.size(); ++head) {
    const std::vector<int32_t>& wanted = expected.positions[head];
    const std::vector<int32_t>& got = actual[head];
    ASSERT_EQ(wanted.size(), got.size());
    ASSERT_TRUE(std::is_sorted(got.begin(), got.end()));
    EXPECT_EQ(got.back(), wanted.back()) << "the current token";
    std::vector<int32_t> differing;
    std::set_symmetric_difference(wanted.begin(), wanted.end(), got.begin(), got.end(),
                                  std::back_inserter(differing));
    const std::vector<double>& bounds = expected.scores[head];
    double nearest = 1e300;
    for (const int32_t t : differing) {
      for (const int32_t other : differing) {
        if (t / kBlockSize == other / kBlockSize) continue;
        nearest = std::min(nearest, std::abs(bounds[static_cast<size_t>(t / kBlockSize)] -
                                             bounds[static_cast<size_t>(other / kBlockSize)]));
      }
    }
    EXPECT_TRUE(differing.empty() || nearest <= tolerance) << "head " << head << ", " << nearest;
  }
}

TEST_P(BackendConformance, QuestAttendsTheBlocksOfTheReference) {
  std::mt19937_64 random(31);
  const auto draw = [&](int32_t min, int32_t max) {
    return std::uniform_int_distribution<int32_t>(min, max)(random);
  };
  for (int number = 0; number < 60; ++number) {
    const int32_t group = draw(1, 5);
    const int32_t num_kv_heads = draw(1, 2);
    const int32_t head_dim = GetParam().head_dims[static_cast<size_t>(
        draw(0, static_cast<int32_t>(GetParam().head_dims.size()) - 1))];
    // Contexts around a block's border as often as any others.
    const int32_t context =
        number % 2 == 0 ? draw(2, 700) : std::max(2, 16 * draw(0, 40) + draw(-1, 1));
    const int32_t budget = draw(1, std::min(300, context - 1));
    const int32_t num_sinks = draw(0, 1) * draw(0, (budget - 1) / 2);
    const Selection selection = {.token_budget = budget,
                                 .num_sink_tokens = num_sinks,
                                 .num_recent_tokens = draw(0, 1) * draw(0, budget - num_sinks)};
    if (!GetParam().RunsCase(number)) continue;
    SCOPED_TRACE(::testing::Message()
                 << "group " << group << ", KV heads " << num_kv_heads << ", head_dim " << head_dim
                 << ", context " << context << ", budget " << budget << ", sinks " << num_sinks
                 << ", recents " << selection.num_recent_tokens);
    const ModelShape shape = MakeShape(1, group * num_kv_heads, num_kv_heads, head_dim);
    const HostWeights weights(shape, 13);
    StepDriver driver(GetParam(), shape, weights.views(), {256, 1, 800}, 50);
    if (!driver.Serves(AttentionMode::kQuest, selection.scope)) continue;
    const TestSequence sequence = driver.MakeSequence(context, 0);
    driver.FillCache(sequence, context - 1);
    driver.Run({sequence.LastToken(selection, AttentionMode::kQuest)}, {kFullLayer},
               kAttentionOnly);
    const ReferenceModel reference(shape, weights.views());
    const std::vector<std::vector<int32_t>> positions = driver.SelectionOf(0);
    ExpectSameBlocks(ReferenceQuest(reference, sequence, selection).selections[0],
                     GetParam().Tolerance(1e-5, 3e-2), positions);
    const ReferenceResult expected = ReferenceQuest(reference, sequence, selection, &positions);
    EXPECT_LE(MaxError(expected.logits, driver.Logits()), GetParam().Tolerance(1e-5, 3e-2));
  }
}

TEST_P(BackendConformance, QuestsBoundsFollowRewrittenAndAppendedKeys) {
  const ModelShape shape = MakeShape(1, 4, 2, 64);
  const HostWeights weights(shape, 14);
  const ReferenceModel reference(shape, weights.views());
  StepDriver driver(GetParam(), shape, weights.views(), {256, 1, 800}, 50);
  if (!driver.Serves(AttentionMode::kQuest, {})) GTEST_SKIP() << "quest is not served";
  const Selection selection = {.token_budget = 64};
  TestSequence sequence = driver.MakeSequence(401, 0);
  driver.FillCache(sequence, 400);
  // Other tokens from the middle of a block on, in two chunks, as a correction writes them.
  for (size_t i = 200; i < 394; ++i) {
    sequence.token_ids[i] = (sequence.token_ids[i] + 1) % shape.vocab_size;
  }
  driver.Run({sequence.Chunk(200, 300, false)}, {kFullLayer}, kAttentionOnly);
  driver.Run({sequence.Chunk(300, 394, false)}, {kFullLayer}, kAttentionOnly);
  for (int32_t end = 395; end <= 401; ++end) {
    // One by one, as decodes append.
    TestSequence beginning = sequence;
    beginning.token_ids.resize(static_cast<size_t>(end));
    driver.Run({beginning.LastToken(selection, AttentionMode::kQuest)}, {kFullLayer},
               kAttentionOnly);
    const std::vector<std::vector<int32_t>> positions = driver.SelectionOf(0);
    ExpectSameBlocks(ReferenceQuest(reference, beginning, selection).selections[0],
                     GetParam().Tolerance(1e-5, 3e-2), positions);
    const ReferenceResult expected = ReferenceQuest(reference, beginning, selection, &positions);
    EXPECT_LE(MaxError(expected.logits, driver.Logits()), GetParam().Tolerance(1e-5, 3e-2));
  }
}

TEST_P(BackendConformance, EachMethodOfABatchComputesWhatItWouldAlone) {
  const ModelShape shape = MakeShape(3, 4, 2, 64);
  const HostWeights weights(shape, 15);
  const std::vector<LayerKinds> plan = {{AttentionKind::kFull, AttentionKind::kFull},
                                        {AttentionKind::kFull, AttentionKind::kSelect},
                                        {AttentionKind::kFull, AttentionKind::kSparse}};
  StepDriver driver(GetParam(), shape, weights.views(), {512, 8, 800}, 400);
  std::vector<TestSequence> sequences;
  std::vector<SequenceChunk> chunks;
  const auto add = [&](int32_t num_tokens) -> const TestSequence& {
    sequences.push_back(driver.MakeSequence(num_tokens, static_cast<int32_t>(sequences.size())));
    driver.Run({sequences.back().Chunk(0, num_tokens - 1, false)}, plan);
    return sequences.back();
  };
  sequences.reserve(8);
  // Scores that nearly tie may pick another position when they are rounded otherwise: where that
  // can be, nearly all are picked, so that those at the border weigh little.
  const int32_t token_budget = GetParam().bitwise_invariant ? 40 : 250;
  chunks.push_back(add(301).LastToken());
  for (const SelectionScope scope :
       {SelectionScope::kQueryHead, SelectionScope::kKvHead, SelectionScope::kLayer}) {
    if (!driver.Serves(AttentionMode::kTidal, scope)) continue;
    chunks.push_back(add(257).LastToken({scope, token_budget, 2, 5}));
  }
  for (const int32_t num_tokens : {130, 497}) {
    if (!driver.Serves(AttentionMode::kQuest, {})) continue;
    chunks.push_back(
        add(num_tokens)
            .LastToken({.token_budget = 64, .num_sink_tokens = 4}, AttentionMode::kQuest));
  }
  std::vector<std::vector<float>> alone;
  for (const SequenceChunk& chunk : chunks) {
    driver.Run({chunk}, plan);
    alone.push_back(driver.Logits());
  }
  // A chunk that prefills is among them.
  sequences.push_back(driver.MakeSequence(100, 7));
  chunks.insert(chunks.begin() + 1, sequences.back().Chunk(0, 100, true));
  driver.Run(chunks, plan);
  for (size_t i = 0; i < alone.size(); ++i) {
    const std::vector<float> together = driver.Logits(i == 0 ? 0 : i + 1);
    if (GetParam().bitwise_invariant) {
      EXPECT_EQ(together, alone[i]) << i;
    } else {
      EXPECT_LE(MaxError(alone[i], together), GetParam().Tolerance(1e-5, 3e-2)) << i;
    }
  }
}

TEST_P(BackendConformance, RefusesMethodsThatItDoesNotServeByName) {
  const ModelShape shape = MakeShape(1, 4, 2, 64);
  const HostWeights weights(shape, 16);
  StepDriver driver(GetParam(), shape, weights.views(), {64, 1, 64}, 8);
  const struct {
    AttentionMode mode;
    SelectionScope scope;
    std::string name;
  } methods[] = {{AttentionMode::kQuest, SelectionScope::kQueryHead, "quest"},
                 {AttentionMode::kTidal, SelectionScope::kLayer, "scope layer"}};
  for (const auto& method : methods) {
    const Selection selection = {.scope = method.scope, .token_budget = 20};
    const absl::Status check = driver.backend().CheckAttention(method.mode, selection);
    if (check.ok()) continue;
    EXPECT_EQ(check.code(), absl::StatusCode::kUnimplemented);
    EXPECT_NE(check.message().find(method.name), std::string::npos) << check;
  }
  EXPECT_TRUE(driver.Serves(AttentionMode::kFull, {}));
  EXPECT_TRUE(driver.Serves(AttentionMode::kTidal, SelectionScope::kQueryHead));
  EXPECT_TRUE(driver.Serves(AttentionMode::kTidal, SelectionScope::kKvHead));
}

}  // namespace
}  // namespace tidal::testing
