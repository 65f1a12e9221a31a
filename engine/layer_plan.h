// The layer plan of TidalDecode (Yang et al., arXiv 2410.05076): which layers attend to the whole
// KV cache, which of them also select positions, and which attend to the selected ones only.
// Immutable; policy is here once, and backends only see each layer's AttentionPass.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/backend/attention.h"
#include "engine/backend/model_shape.h"

namespace tidal {

enum class LayerRole : uint8_t { kFull, kSelect, kSparse };

// What a plan is made from; left-out parts take the defaults of the paper.
struct LayerPlanOptions {
  // Layers with full attention. Default 0 and 1.
  std::optional<std::vector<int32_t>> full_layers;
  // Layers that select. Default 2 and the re-selection layer round(13 / 32 * num_layers), at
  // least 3.
  std::optional<std::vector<int32_t>> selection_layers;
};

// The scope for `auto`: one set a KV head where its query heads share a gather, else one a query
// head.
SelectionScope DefaultSelectionScope(const ModelShape& shape);

class LayerPlan {
 public:
  // INVALID_ARGUMENT where a layer is out of range or named twice, or where a layer that is neither
  // full nor a selection layer comes before the first selection. A model of fewer than 4 layers
  // runs full whatever its options.
  static absl::StatusOr<LayerPlan> Create(int32_t num_layers, const LayerPlanOptions& options);

  int32_t num_layers() const { return static_cast<int32_t>(roles_.size()); }
  LayerRole role(int32_t layer) const { return roles_[static_cast<size_t>(layer)]; }
  const AttentionPass& pass(int32_t layer) const { return passes_[static_cast<size_t>(layer)]; }

  // Whether any layer is sparse, so that the mode tidal differs from full.
  bool has_sparse_layers() const { return num_sparse_layers_ > 0; }
  std::vector<int32_t> LayersWithRole(LayerRole role) const;

  // Positions that all layers together attend for one decoded token with `num_context_tokens`.
  int64_t AttendedTokens(AttentionMode mode, const Selection& selection,
                         int32_t num_context_tokens) const;

 private:
  explicit LayerPlan(std::vector<LayerRole> roles);

  std::vector<LayerRole> roles_;
  std::vector<AttentionPass> passes_;
  int32_t num_sparse_layers_ = 0;
};

}  // namespace tidal
