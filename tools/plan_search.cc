#include "tools/plan_search.h"

#include <algorithm>
#include <map>
#include <utility>

namespace tidal {
namespace {

constexpr int32_t kNoSelection = -1;

// Plans of the layers so far, by the number of their dense layers and the last selecting one: what
// comes behind depends on nothing else, so the best of each state are enough.
using State = std::pair<int32_t, int32_t>;
using Frontier = std::map<State, std::vector<PlanCandidate>>;

// Whether no sparse layer before `layer` uses the plan's last selection: then the plan with that
// layer full is the same.
bool LastSelectionIsUnused(const PlanCandidate& plan, int32_t layer) {
  if (plan.selection_layers.empty()) return false;
  const int32_t selecting = plan.selection_layers.back();
  const auto num_full_behind = std::count_if(plan.full_layers.begin(), plan.full_layers.end(),
                                             [&](int32_t full) { return full > selecting; });
  return num_full_behind == layer - 1 - selecting;
}

void Add(State state, PlanCandidate plan, size_t num_each, Frontier* frontier) {
  std::vector<PlanCandidate>& plans = (*frontier)[state];
  const auto place = std::upper_bound(
      plans.begin(), plans.end(), plan,
      [](const PlanCandidate& a, const PlanCandidate& b) { return a.loss < b.loss; });
  plans.insert(place, std::move(plan));
  if (plans.size() > num_each) plans.pop_back();
}

}  // namespace

std::vector<PlanCandidate> SearchPlans(const RecallResult& recall, int32_t max_dense_layers,
                                       size_t num_each) {
  Frontier frontier;
  frontier[{0, kNoSelection}].emplace_back();
  for (int32_t layer = 0; layer < recall.num_layers(); ++layer) {
    Frontier next;
    for (const auto& [state, plans] : frontier) {
      const auto [num_dense_layers, selecting] = state;
      for (const PlanCandidate& plan : plans) {
        if (selecting != kNoSelection) {
          PlanCandidate sparse = plan;
          sparse.loss += recall.Loss(selecting, layer);
          Add(state, std::move(sparse), num_each, &next);
        }
        if (num_dense_layers == max_dense_layers) continue;
        PlanCandidate full = plan;
        full.full_layers.push_back(layer);
        Add({num_dense_layers + 1, selecting}, std::move(full), num_each, &next);
        if (LastSelectionIsUnused(plan, layer)) continue;
        PlanCandidate selects = plan;
        selects.selection_layers.push_back(layer);
        Add({num_dense_layers + 1, layer}, std::move(selects), num_each, &next);
      }
    }
    frontier = std::move(next);
  }
  std::map<int32_t, std::vector<PlanCandidate>> by_size;
  for (auto& [state, plans] : frontier) {
    if (state.second == kNoSelection) continue;
    for (PlanCandidate& plan : plans) {
      if (LastSelectionIsUnused(plan, recall.num_layers())) continue;
      by_size[state.first].push_back(std::move(plan));
    }
  }
  std::vector<PlanCandidate> result;
  for (auto& [size, plans] : by_size) {
    std::stable_sort(
        plans.begin(), plans.end(),
        [](const PlanCandidate& a, const PlanCandidate& b) { return a.loss < b.loss; });
    plans.resize(std::min(plans.size(), num_each));
    result.insert(result.end(), plans.begin(), plans.end());
  }
  return result;
}

}  // namespace tidal
