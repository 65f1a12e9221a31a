// Runs a step's layers on a backend. The scheduler's and the server's tests fake it, so they need
// no tensors. Engine thread only.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/backend/sampling.h"
#include "engine/backend/step_batch.h"

namespace tidal {

class ModelRunner {
 public:
  virtual ~ModelRunner() = default;

  // Gives sampler slot `slot` to a sequence with this history.
  virtual absl::Status BindSampler(int32_t slot, const SamplingParams& params,
                                   absl::Span<const int32_t> prompt_token_ids,
                                   absl::Span<const int32_t> generated_token_ids) = 0;

  // Begins a step. The batch's spans need not outlive the call.
  virtual absl::Status Launch(const StepBatch& batch) = 0;

  // Waits for the oldest step launched; one token for each of its chunks with `samples`, in order.
  virtual absl::Status Collect(std::vector<SampledToken>* sampled) = 0;

  // Whether it computes this attention: UNIMPLEMENTED names what it does not. Any thread.
  virtual absl::Status CheckAttention(AttentionMode /*mode*/,
                                      const Selection& /*selection*/) const {
    return absl::OkStatus();
  }

  // How many steps may be launched and not yet collected; at least 1. Calls take effect in their
  // order, as the seam says (backend/backend.h).
  virtual int32_t max_steps_in_flight() const { return 1; }
};

}  // namespace tidal
