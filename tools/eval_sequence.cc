#include "tools/eval_sequence.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "engine/backend/status_macros.h"

namespace tidal {

EvalSequence::EvalSequence(ServingModel* model)
    : model_(model), block_table_(static_cast<size_t>(model->num_blocks)) {
  std::iota(block_table_.begin(), block_table_.end(), 0);
}

absl::Status EvalSequence::CheckFits(int64_t num_tokens) const {
  if (num_tokens <= model_->max_model_len) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("a text of ", num_tokens,
                                                   " tokens does not fit: the model serves ",
                                                   model_->max_model_len, " with this KV cache"));
}

absl::Status EvalSequence::Prefill(absl::Span<const int32_t> token_ids) {
  TIDAL_RETURN_IF_ERROR(CheckFits(static_cast<int64_t>(token_ids.size())));
  TIDAL_RETURN_IF_ERROR(
      model_->backend->BindSampler(0, SamplingParams{.temperature = 0.0f}, {}, {}));
  const auto chunk_size = static_cast<size_t>(model_->max_batch_tokens);
  for (size_t begin = 0; begin < token_ids.size(); begin += chunk_size) {
    const size_t count = std::min(chunk_size, token_ids.size() - begin);
    StepBatch batch;
    batch.chunks.push_back({.token_ids = token_ids.subspan(begin, count),
                            .num_context_tokens = static_cast<int32_t>(begin + count),
                            .block_table = block_table_});
    TIDAL_RETURN_IF_ERROR(Run(batch, model_->plan, nullptr));
  }
  return absl::OkStatus();
}

absl::Status EvalSequence::Decode(int32_t token_id, int32_t position, const LayerPlan& plan,
                                  AttentionMode mode, const Selection& selection,
                                  std::vector<float>* logits, const LayerObserver& on_attention) {
  TIDAL_RETURN_IF_ERROR(CheckFits(int64_t{position} + 1));
  const bool runs_full = position + 1 <= selection.token_budget;
  StepBatch batch;
  batch.chunks.push_back({.token_ids = {&token_id, 1},
                          .num_context_tokens = position + 1,
                          .block_table = block_table_,
                          .mode = runs_full ? AttentionMode::kFull : mode,
                          .selection = selection,
                          .samples = true});
  TIDAL_RETURN_IF_ERROR(Run(batch, plan, on_attention));
  return model_->backend->ReadLogits(logits);
}

absl::Status EvalSequence::Run(const StepBatch& batch, const LayerPlan& plan,
                               const LayerObserver& on_attention) {
  Backend& backend = *model_->backend;
  TIDAL_RETURN_IF_ERROR(backend.BeginStep(batch));
  TIDAL_RETURN_IF_ERROR(backend.Embed());
  for (int32_t layer = 0; layer < plan.num_layers(); ++layer) {
    TIDAL_RETURN_IF_ERROR(backend.AttentionInput(layer));
    TIDAL_RETURN_IF_ERROR(backend.Attention(layer, plan.pass(layer)));
    if (on_attention != nullptr) TIDAL_RETURN_IF_ERROR(on_attention(layer));
    TIDAL_RETURN_IF_ERROR(backend.AttentionOutput(layer));
    TIDAL_RETURN_IF_ERROR(backend.Mlp(layer));
  }
  TIDAL_RETURN_IF_ERROR(backend.Sample());
  std::vector<SampledToken> sampled;
  return backend.EndStep(&sampled);
}

}  // namespace tidal
