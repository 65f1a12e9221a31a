// Recall between layers, the search for plans, and calibration over the embedded model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "engine/layer_plan_file.h"
#include "tools/calibration.h"
#include "tools/plan_search.h"
#include "tools/recall_eval.h"

namespace tidal {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

// Layers that lose nothing to each other, but for the pairs named.
RecallResult MakeRecall(int32_t num_layers,
                        const std::vector<std::pair<std::pair<int, int>, double>>& covered) {
  const auto size = static_cast<size_t>(num_layers);
  RecallResult recall;
  recall.token_budget = 64;
  recall.num_decoded_tokens = 1;
  recall.positions.assign(size, std::vector<double>(size, 1.0));
  for (const auto& [pair, share] : covered) {
    recall.positions[static_cast<size_t>(pair.first)][static_cast<size_t>(pair.second)] = share;
  }
  return recall;
}

TEST(PlanSearchTest, OneSelectionServesLayersThatAgree) {
  const std::vector<PlanCandidate> plans = SearchPlans(MakeRecall(6, {}), 5, 1);
  ASSERT_FALSE(plans.empty());
  EXPECT_THAT(plans[0].full_layers, IsEmpty());
  EXPECT_THAT(plans[0].selection_layers, ElementsAre(0));
  EXPECT_EQ(plans[0].loss, 0);
}

TEST(PlanSearchTest, KeepsALayerFullWhoseSelectionWouldServeTheOthersWorse) {
  // Layer 3 agrees with nobody: what 0 selects suits all but it, what it selects suits none.
  const RecallResult recall =
      MakeRecall(6, {{{0, 3}, 0.1}, {{1, 3}, 0.1}, {{2, 3}, 0.1}, {{3, 4}, 0.2}, {{3, 5}, 0.2}});
  const std::vector<PlanCandidate> plans = SearchPlans(recall, 5, 1);
  ASSERT_GE(plans.size(), 2u);
  EXPECT_EQ(plans[0].num_dense_layers(), 1);
  EXPECT_NEAR(plans[0].loss, 0.9, 1e-12);
  EXPECT_EQ(plans[1].num_dense_layers(), 2);
  EXPECT_THAT(plans[1].full_layers, ElementsAre(3));
  EXPECT_THAT(plans[1].selection_layers, ElementsAre(0));
  EXPECT_NEAR(plans[1].loss, 0.0, 1e-12);
}

TEST(PlanSearchTest, FindsTheLeastLossOfAllPlans) {
  // Against every assignment of roles, with losses that have no pattern.
  constexpr int32_t kLayers = 6;
  RecallResult recall = MakeRecall(kLayers, {});
  for (int i = 0; i < kLayers; ++i) {
    for (int j = i + 1; j < kLayers; ++j) {
      recall.positions[static_cast<size_t>(i)][static_cast<size_t>(j)] =
          static_cast<double>((i * 7 + j * 13 + i * j * 5) % 97) / 97;
    }
  }
  std::vector<double> least(kLayers, 1e9);
  for (int code = 0; code < 729; ++code) {
    double loss = 0;
    int selecting = -1;
    size_t num_dense = 0;
    bool is_valid = true;
    for (int layer = 0, rest = code; layer < kLayers; ++layer, rest /= 3) {
      num_dense += rest % 3 != 0 ? 1 : 0;
      if (rest % 3 == 2) selecting = layer;
      if (rest % 3 != 0) continue;
      is_valid = is_valid && selecting >= 0;
      if (is_valid) loss += recall.Loss(selecting, layer);
    }
    if (is_valid && num_dense < kLayers) least[num_dense] = std::min(least[num_dense], loss);
  }
  const std::vector<PlanCandidate> plans = SearchPlans(recall, kLayers - 1, 1);
  ASSERT_EQ(plans.size(), static_cast<size_t>(kLayers - 1));
  for (const PlanCandidate& plan : plans) {
    EXPECT_NEAR(plan.loss, least[static_cast<size_t>(plan.num_dense_layers())], 1e-12);
    EXPECT_TRUE(LayerPlan::Create(kLayers, {.full_layers = plan.full_layers,
                                            .selection_layers = plan.selection_layers})
                    .ok());
  }
}

TEST(RecallReportTest, DrawsAndTellsWhatIsKnown) {
  const RecallResult recall = MakeRecall(4, {{{0, 1}, 0.25}});
  std::ostringstream tables;
  PrintRecallTables(recall, &tables);
  EXPECT_THAT(tables.str(), AllOf(HasSubstr("budget 64, 1 decoded tokens"), HasSubstr("   25.0"),
                                  HasSubstr("this device does not tell it")));
  EXPECT_THAT(RecallPlotSvg(recall),
              AllOf(StartsWith("<svg "), EndsWith("</svg>\n"), HasSubstr("selected by 3")));
  EXPECT_FALSE(ToJson(recall).contains("mass"));
}

class EmbeddedModelPlanTest : public ::testing::Test {
 protected:
  static ServingModel Load() {
    absl::StatusOr<ServingModel> model =
        LoadServingModel({.model_path = std::string(TIDAL_SOURCE_DIR) + "/models/needle",
                          .device = Device::kCpu,
                          .cpu_threads = 1,
                          .max_model_len = 1024,
                          .max_running_requests = 1});
    EXPECT_TRUE(model.ok()) << model.status();
    return *std::move(model);
  }

  static NeedleGrid Grid() {
    return {.tasks = {{NeedleTask::kSingle, 1}},
            .contexts = {500},
            .depths = {0, 0.6},
            .token_budgets = {64},
            .methods = {},
            .num_cases = 2,
            .seed = 21,
            .selection = {.scope = SelectionScope::kKvHead, .token_budget = 64}};
  }

  ServingModel model_ = Load();
};

TEST_F(EmbeddedModelPlanTest, RecallIsAShareAndALayersOwnSelectionIsTheBest) {
  const NeedleGrid grid = Grid();
  const auto prompts = MakeRecallPrompts(model_, grid);
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  ASSERT_EQ(prompts->size(), 4u);
  const auto recall = MeasureRecall(&model_, *prompts, grid.selection, [](int64_t) {});
  ASSERT_TRUE(recall.ok()) << recall.status();
  ASSERT_EQ(recall->num_layers(), 8);
  ASSERT_TRUE(recall->has_mass);
  EXPECT_EQ(recall->num_decoded_tokens, 4 * 6);
  for (size_t j = 0; j < 8; ++j) {
    EXPECT_NEAR(recall->positions[j][j], 1.0, 1e-9);
    for (size_t i = 0; i < j; ++i) {
      EXPECT_GE(recall->positions[i][j], 1.0 / 64) << "the current token is always common";
      EXPECT_LE(recall->positions[i][j], 1.0);
      // Top sums of probabilities of a group of heads: nothing covers more.
      EXPECT_LE(recall->mass[i][j], recall->mass[j][j] + 1e-6);
      EXPECT_GE(recall->mass[i][j], 0.0);
    }
  }
}

TEST_F(EmbeddedModelPlanTest, CalibrationWritesAPlanThatLosesNothing) {
  CalibrationOptions options = {.grid = Grid(), .max_dense_layers = 7};
  const auto prompts = MakeRecallPrompts(model_, options.grid);
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  const auto recall = MeasureRecall(&model_, *prompts, options.grid.selection, [](int64_t) {});
  ASSERT_TRUE(recall.ok()) << recall.status();
  size_t num_tried = 0;
  const auto calibration =
      Calibrate(&model_, *recall, options, [&](const TriedPlan&) { ++num_tried; });
  ASSERT_TRUE(calibration.ok()) << calibration.status();
  EXPECT_EQ(calibration->tried.size(), num_tried);
  EXPECT_EQ(calibration->num_found_by_full, 4);
  const TriedPlan& chosen = calibration->tried[calibration->chosen];
  EXPECT_EQ(chosen.num_found, 4);
  const auto file = ParseLayerPlanFile(LayerPlanFileOf(*calibration, options).dump());
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(*file->selection_layers, chosen.candidate.selection_layers);
  EXPECT_EQ(*file->full_layers, chosen.candidate.full_layers);
}

TEST_F(EmbeddedModelPlanTest, CalibrationFailsWhereEveryAllowedPlanLosesSomething) {
  CalibrationOptions options = {.grid = Grid(), .max_dense_layers = 1};
  const RecallResult recall = MakeRecall(8, {});
  const auto calibration = Calibrate(&model_, recall, options, [](const TriedPlan&) {});
  EXPECT_EQ(calibration.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(calibration.status().message(), HasSubstr("of at most 1 dense layers loses some"));
}

}  // namespace
}  // namespace tidal
