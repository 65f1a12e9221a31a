// Picks layer plans for a checkpoint from what recall measured: which layers read the whole cache,
// and which of these select, so that the sparse ones lose little. Pure functions.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/layer_plan.h"
#include "tools/recall_eval.h"

namespace tidal {

struct PlanCandidate {
  std::vector<int32_t> full_layers;
  std::vector<int32_t> selection_layers;
  double loss = 0;  // RecallResult::Loss, summed over the sparse layers

  int32_t num_dense_layers() const {
    return static_cast<int32_t>(full_layers.size() + selection_layers.size());
  }
};

// For each number of dense layers from 1 to `max_dense_layers`, at most `num_each` plans of the
// least loss, fewest dense layers first, then by loss. A full layer costs what a selecting one
// costs and is taken where selecting anew would serve those behind it worse. Each has at least one
// sparse layer.
std::vector<PlanCandidate> SearchPlans(const RecallResult& recall, int32_t max_dense_layers,
                                       size_t num_each);

}  // namespace tidal
