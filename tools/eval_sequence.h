// One sequence on a model, computed step by step without an engine: for measurements that decide
// each input token themselves, or look into a step.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/layer_plan.h"
#include "engine/model_loader.h"

namespace tidal {

class EvalSequence {
 public:
  // `model`, whose KV cache nobody else uses meanwhile, must outlive this object.
  explicit EvalSequence(ServingModel* model);

  // Computes `token_ids` as the sequence's beginning, in chunks, with full attention.
  // RESOURCE_EXHAUSTED where it is longer than the KV cache.
  absl::Status Prefill(absl::Span<const int32_t> token_ids);

  // Hears of a layer between its attention and its attention output.
  using LayerObserver = std::function<absl::Status(int32_t layer)>;

  // Decodes one token at `position`, with what is in the cache before it; where the budget covers
  // the context, with full attention. *logits become those of the next token.
  absl::Status Decode(int32_t token_id, int32_t position, const LayerPlan& plan, AttentionMode mode,
                      const Selection& selection, std::vector<float>* logits,
                      const LayerObserver& on_attention = nullptr);

 private:
  absl::Status Run(const StepBatch& batch, const LayerPlan& plan,
                   const LayerObserver& on_attention);
  absl::Status CheckFits(int64_t num_tokens) const;

  ServingModel* model_;
  std::vector<int32_t> block_table_;  // the whole cache
};

}  // namespace tidal
