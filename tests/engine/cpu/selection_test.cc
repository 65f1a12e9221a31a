#include "engine/cpu/selection.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace tidal::cpu {
namespace {

std::vector<int32_t> BruteForce(const Selection& selection, const std::vector<float>& scores) {
  const int32_t context = static_cast<int32_t>(scores.size());
  const int32_t first_recent = context - std::max(selection.num_recent_tokens, 1);
  std::vector<int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  const auto kept = [&](int32_t t) { return t < selection.num_sink_tokens || t >= first_recent; };
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    if (kept(a) != kept(b)) return kept(a);
    return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)];
  });
  order.resize(static_cast<size_t>(selection.token_budget));
  std::sort(order.begin(), order.end());
  return order;
}

std::vector<int32_t> Select(const Selection& selection, std::vector<float> scores) {
  std::vector<int32_t> positions(static_cast<size_t>(selection.token_budget), -1);
  SelectPositions(BestKernels(), selection, absl::MakeSpan(scores), positions.data());
  return positions;
}

TEST(SelectionTest, EqualsBruteForceOnRandomScoresWithTies) {
  std::mt19937 random(1);
  for (int round = 0; round < 2000; ++round) {
    const int32_t context = 2 + static_cast<int32_t>(random() % 700);
    // From all equal to all different.
    const int num_values = 1 << (random() % 12);
    std::vector<float> scores;
    for (int32_t i = 0; i < context; ++i) {
      const int value = static_cast<int>(random() % static_cast<unsigned>(num_values));
      scores.push_back(static_cast<float>(value - num_values / 2) * 0.37f);
    }
    Selection selection;
    selection.token_budget =
        1 + static_cast<int32_t>(random() % static_cast<unsigned>(context - 1));
    selection.num_recent_tokens =
        static_cast<int32_t>(random() % static_cast<unsigned>(selection.token_budget + 1));
    const int32_t left = selection.token_budget - std::max(selection.num_recent_tokens, 1);
    selection.num_sink_tokens = static_cast<int32_t>(random() % static_cast<unsigned>(left + 1));
    ASSERT_EQ(BruteForce(selection, scores), Select(selection, scores))
        << "context " << context << " budget " << selection.token_budget << " sinks "
        << selection.num_sink_tokens << " recents " << selection.num_recent_tokens;
  }
}

TEST(SelectionTest, HandlesExtremeScores) {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> scores = {0.0f,    -0.0f, infinity, -infinity, 1e-45f,
                                     -1e-45f, 3e38f, -3e38f,   infinity,  0.0f};
  for (int32_t budget = 1; budget < 10; ++budget) {
    const Selection selection = {SelectionScope::kQueryHead, budget, 0, 0};
    EXPECT_EQ(BruteForce(selection, scores), Select(selection, scores)) << budget;
  }
}

}  // namespace
}  // namespace tidal::cpu
