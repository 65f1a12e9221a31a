#include "engine/layer_plan.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/backend/status_macros.h"

namespace tidal {
namespace {

constexpr int32_t kMinLayersForSparse = 4;

// The paper's re-selection layer is 13 of 32; other depths scale it.
int32_t DefaultReselectionLayer(int32_t num_layers) {
  return std::max(3, static_cast<int32_t>(std::lround(13.0 / 32.0 * num_layers)));
}

absl::Status AssignRole(const char* option, const std::vector<int32_t>& layers, LayerRole role,
                        std::vector<LayerRole>* roles, std::vector<bool>* assigned) {
  const int32_t num_layers = static_cast<int32_t>(roles->size());
  for (const int32_t layer : layers) {
    if (layer < 0 || layer >= num_layers) {
      return absl::InvalidArgumentError(absl::StrCat(option, ": layer ", layer, " is not in 0..",
                                                     num_layers - 1, ", the model's layers"));
    }
    const auto index = static_cast<size_t>(layer);
    if ((*assigned)[index]) {
      return absl::InvalidArgumentError(
          absl::StrCat(option, ": layer ", layer,
                       " is named twice; a layer is full or a selection layer, and is named once"));
    }
    (*assigned)[index] = true;
    (*roles)[index] = role;
  }
  return absl::OkStatus();
}

// Quest's first layers are full, whatever the plan.
constexpr int32_t kNumFullQuestLayers = 2;

AttentionPass MakePass(int32_t layer, LayerRole role) {
  AttentionPass pass;
  if (layer >= kNumFullQuestLayers) {
    pass.kind_of_mode[static_cast<size_t>(AttentionMode::kQuest)] = AttentionKind::kQuest;
  }
  AttentionKind& tidal = pass.kind_of_mode[static_cast<size_t>(AttentionMode::kTidal)];
  if (role == LayerRole::kSelect) tidal = AttentionKind::kSelect;
  if (role == LayerRole::kSparse) tidal = AttentionKind::kSparse;
  return pass;
}

}  // namespace

SelectionScope DefaultSelectionScope(const ModelShape& shape) {
  return shape.group_size() > 1 ? SelectionScope::kKvHead : SelectionScope::kQueryHead;
}

absl::StatusOr<LayerPlan> LayerPlan::Create(int32_t num_layers, const LayerPlanOptions& options) {
  if (num_layers < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_layers: ", num_layers, " is below 1, the least a model has"));
  }
  std::vector<LayerRole> roles(static_cast<size_t>(num_layers), LayerRole::kSparse);
  if (num_layers < kMinLayersForSparse) {
    std::fill(roles.begin(), roles.end(), LayerRole::kFull);
    return LayerPlan(std::move(roles));
  }
  const std::vector<int32_t> full = options.full_layers.value_or(std::vector<int32_t>{0, 1});
  const std::vector<int32_t> selection = options.selection_layers.value_or(
      std::vector<int32_t>{2, DefaultReselectionLayer(num_layers)});
  std::vector<bool> assigned(roles.size(), false);
  TIDAL_RETURN_IF_ERROR(AssignRole("full_layers", full, LayerRole::kFull, &roles, &assigned));
  TIDAL_RETURN_IF_ERROR(
      AssignRole("selection_layers", selection, LayerRole::kSelect, &roles, &assigned));

  const auto first_sparse = std::find(roles.begin(), roles.end(), LayerRole::kSparse);
  const auto first_select = std::find(roles.begin(), roles.end(), LayerRole::kSelect);
  if (first_sparse < first_select) {
    return absl::InvalidArgumentError(absl::StrCat(
        "selection_layers: layer ", first_sparse - roles.begin(),
        " would be sparse, but no layer before it selects positions; name it in full_layers"));
  }
  return LayerPlan(std::move(roles));
}

LayerPlan::LayerPlan(std::vector<LayerRole> roles) : roles_(std::move(roles)) {
  passes_.reserve(roles_.size());
  for (const LayerRole role : roles_) {
    passes_.push_back(MakePass(static_cast<int32_t>(passes_.size()), role));
    if (role == LayerRole::kSparse) ++num_sparse_layers_;
  }
}

std::vector<int32_t> LayerPlan::LayersWithRole(LayerRole role) const {
  std::vector<int32_t> layers;
  for (int32_t layer = 0; layer < num_layers(); ++layer) {
    if (this->role(layer) == role) layers.push_back(layer);
  }
  return layers;
}

int64_t LayerPlan::AttendedTokens(AttentionMode mode, const Selection& selection,
                                  int32_t num_context_tokens) const {
  const int64_t context = num_context_tokens;
  if (mode == AttentionMode::kFull || context <= selection.token_budget) {
    return num_layers() * context;
  }
  if (mode == AttentionMode::kQuest) {
    const int32_t num_full_layers = std::min(num_layers(), kNumFullQuestLayers);
    const QuestBlocks blocks = QuestBlocksOf(selection, num_context_tokens);
    return num_full_layers * context +
           int64_t{num_layers() - num_full_layers} * blocks.num_positions(num_context_tokens);
  }
  return (num_layers() - num_sparse_layers_) * context +
         int64_t{num_sparse_layers_} * selection.token_budget;
}

}  // namespace tidal
