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
        PlanCandidate selects = plan;
        selects.selection_layers.push_back(layer);
        Add({num_dense_layers + 1, layer}, std::move(selects), num_each, &next);
      }
    }
    frontier = std::move(next);
  }
  std::map<int32_t, std::vector<PlanCandidate>> by_size;
  for (auto& [state, plans] : frontier) {
    // Where the last layer selects, nobody uses it: the plan with that layer full is the same.
    if (state.second == kNoSelection || state.second == recall.num_layers() - 1) continue;
    if (state.first == recall.num_layers()) continue;
    std::vector<PlanCandidate>& all = by_size[state.first];
    all.insert(all.end(), plans.begin(), plans.end());
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
