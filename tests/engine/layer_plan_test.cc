#include "engine/layer_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace tidal {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

LayerPlan PlanOf(int32_t num_layers, const LayerPlanOptions& options = {}) {
  absl::StatusOr<LayerPlan> plan = LayerPlan::Create(num_layers, options);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return *std::move(plan);
}

TEST(LayerPlanTest, DefaultsToThePapersLayersForThirtyTwo) {
  const LayerPlan plan = PlanOf(32);
  EXPECT_THAT(plan.LayersWithRole(LayerRole::kFull), ElementsAre(0, 1));
  EXPECT_THAT(plan.LayersWithRole(LayerRole::kSelect), ElementsAre(2, 13));
}

TEST(LayerPlanTest, ScalesTheReselectionLayerWithDepth) {
  EXPECT_THAT(PlanOf(8).LayersWithRole(LayerRole::kSelect), ElementsAre(2, 3));
  EXPECT_THAT(PlanOf(16).LayersWithRole(LayerRole::kSelect), ElementsAre(2, 7));
  EXPECT_THAT(PlanOf(80).LayersWithRole(LayerRole::kSelect), ElementsAre(2, 33));
  EXPECT_THAT(PlanOf(4).LayersWithRole(LayerRole::kSelect), ElementsAre(2, 3));
}

TEST(LayerPlanTest, RunsFullBelowFourLayers) {
  for (int32_t num_layers = 1; num_layers < 4; ++num_layers) {
    const LayerPlan plan = PlanOf(num_layers);
    EXPECT_FALSE(plan.has_sparse_layers());
    EXPECT_EQ(plan.LayersWithRole(LayerRole::kFull).size(), static_cast<size_t>(num_layers));
  }
}

TEST(LayerPlanTest, PassesFollowRoleAndMode) {
  const LayerPlan plan = PlanOf(8, {.full_layers = {{0, 1}}, .selection_layers = {{2, 4}}});
  EXPECT_EQ(plan.pass(0).kind(AttentionMode::kTidal), AttentionKind::kFull);
  EXPECT_EQ(plan.pass(2).kind(AttentionMode::kTidal), AttentionKind::kSelect);
  EXPECT_EQ(plan.pass(3).kind(AttentionMode::kTidal), AttentionKind::kSparse);
  EXPECT_EQ(plan.pass(4).kind(AttentionMode::kTidal), AttentionKind::kSelect);
  for (int32_t layer = 0; layer < 8; ++layer) {
    EXPECT_EQ(plan.pass(layer).kind(AttentionMode::kFull), AttentionKind::kFull);
  }
}

TEST(LayerPlanTest, CountsAttendedTokens) {
  const LayerPlan plan = PlanOf(8, {.full_layers = {{0, 1}}, .selection_layers = {{2, 4}}});
  const Selection selection{.scope = SelectionScope::kKvHead, .token_budget = 64};
  EXPECT_EQ(plan.AttendedTokens(AttentionMode::kFull, selection, 1000), 8 * 1000);
  EXPECT_EQ(plan.AttendedTokens(AttentionMode::kTidal, selection, 1000), 4 * 1000 + 4 * 64);
  EXPECT_EQ(plan.AttendedTokens(AttentionMode::kTidal, selection, 50), 8 * 50);
}

TEST(LayerPlanTest, RefusesLayersOutOfRange) {
  const auto plan = LayerPlan::Create(8, {.full_layers = {{0, 1}}, .selection_layers = {{2, 8}}});
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(plan.status().message()),
              HasSubstr("selection_layers: layer 8 is not in 0..7"));
  EXPECT_FALSE(LayerPlan::Create(8, {.full_layers = {{-1}}, .selection_layers = {{2}}}).ok());
}

TEST(LayerPlanTest, RefusesALayerNamedTwice) {
  const auto plan = LayerPlan::Create(8, {.full_layers = {{0, 2}}, .selection_layers = {{1, 2}}});
  EXPECT_THAT(std::string(plan.status().message()), HasSubstr("layer 2 is named twice"));
}

TEST(LayerPlanTest, RefusesSparseLayersBeforeTheFirstSelection) {
  const auto plan = LayerPlan::Create(8, {.full_layers = {{0}}, .selection_layers = {{2, 4}}});
  EXPECT_THAT(std::string(plan.status().message()), HasSubstr("layer 1 would be sparse"));
}

TEST(LayerPlanTest, SelectionMayComeFirst) {
  const LayerPlan plan =
      PlanOf(8, {.full_layers = std::vector<int32_t>{}, .selection_layers = {{0}}});
  EXPECT_THAT(plan.LayersWithRole(LayerRole::kFull), IsEmpty());
  EXPECT_EQ(plan.LayersWithRole(LayerRole::kSparse).size(), 7u);
}

TEST(LayerPlanTest, ScopeFollowsHeadGrouping) {
  EXPECT_EQ(DefaultSelectionScope({.num_query_heads = 8, .num_kv_heads = 8}),
            SelectionScope::kQueryHead);
  EXPECT_EQ(DefaultSelectionScope({.num_query_heads = 8, .num_kv_heads = 2}),
            SelectionScope::kKvHead);
}

}  // namespace
}  // namespace tidal
