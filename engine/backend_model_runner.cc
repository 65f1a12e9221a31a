#include "engine/backend_model_runner.h"

#include <utility>

#include "engine/backend/status_macros.h"

namespace tidal {

BackendModelRunner::BackendModelRunner(Backend* backend, LayerPlan plan)
    : backend_(backend), plan_(std::move(plan)) {}

absl::Status BackendModelRunner::BindSampler(int32_t slot, const SamplingParams& params,
                                             absl::Span<const int32_t> prompt_token_ids,
                                             absl::Span<const int32_t> generated_token_ids) {
  return backend_->BindSampler(slot, params, prompt_token_ids, generated_token_ids);
}

absl::Status BackendModelRunner::Launch(const StepBatch& batch) {
  TIDAL_RETURN_IF_ERROR(backend_->BeginStep(batch));
  TIDAL_RETURN_IF_ERROR(backend_->Embed());
  for (int32_t layer = 0; layer < plan_.num_layers(); ++layer) {
    TIDAL_RETURN_IF_ERROR(backend_->AttentionInput(layer));
    TIDAL_RETURN_IF_ERROR(backend_->Attention(layer, plan_.pass(layer)));
    TIDAL_RETURN_IF_ERROR(backend_->AttentionOutput(layer));
    TIDAL_RETURN_IF_ERROR(backend_->Mlp(layer));
  }
  return backend_->Sample();
}

absl::Status BackendModelRunner::Collect(std::vector<SampledToken>* sampled) {
  return backend_->EndStep(sampled);
}

}  // namespace tidal
