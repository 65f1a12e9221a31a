// A model without tensors: the token it draws is a function of the sequence's history alone, so a
// test can say what any request must yield. It checks that the engine keeps the seam's rules, and
// keeps a KV cache of its own in which every slot remembers the token and position that were
// written there.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "engine/backend/attention.h"
#include "engine/model_runner.h"

namespace tidal {

class FakeModelRunner : public ModelRunner {
 public:
  // The token drawn after `history`, prompt and output.
  using NextToken = std::function<int32_t(const std::vector<int32_t>& history)>;

  FakeModelRunner(int32_t num_blocks, NextToken next_token, int32_t max_steps_in_flight = 1);

  // Called at the start of each Launch, on the engine thread; an error is returned from it.
  void set_on_launch(std::function<absl::Status(const StepBatch&)> on_launch) {
    on_launch_ = std::move(on_launch);
  }

  // Called in each BindSampler, on the engine thread.
  void set_on_bind(std::function<void(const SamplingParams&)> on_bind) {
    on_bind_ = std::move(on_bind);
  }

  absl::Status BindSampler(int32_t slot, const SamplingParams& params,
                           absl::Span<const int32_t> prompt_token_ids,
                           absl::Span<const int32_t> generated_token_ids) override;
  absl::Status Launch(const StepBatch& batch) override;
  absl::Status Collect(std::vector<SampledToken>* sampled) override;
  int32_t max_steps_in_flight() const override { return max_steps_in_flight_; }

  // Called at the start of each Collect, on the engine thread; an error is returned from it.
  void set_on_collect(std::function<absl::Status()> on_collect) {
    on_collect_ = std::move(on_collect);
  }

  // What a batch held, for tests to look at afterwards.
  struct LaunchedChunk {
    int32_t num_tokens;
    int32_t num_context_tokens;
    AttentionMode mode;
    bool samples;
    int32_t sampler_slot;
  };
  using LaunchedStep = std::vector<LaunchedChunk>;
  std::vector<LaunchedStep> launched_steps() const;

  // A token that depends on every token and position of the history.
  static int32_t HashOfHistory(const std::vector<int32_t>& history, int32_t vocab_size);

 private:
  struct CachedToken {
    int32_t token_id = -1;
    int32_t position = -1;
  };

  std::vector<int32_t> ReadHistory(const SequenceChunk& chunk) const;

  const NextToken next_token_;
  const int32_t max_steps_in_flight_;
  std::function<void(const SamplingParams&)> on_bind_;
  std::function<absl::Status(const StepBatch&)> on_launch_;
  std::function<absl::Status()> on_collect_;
  std::vector<CachedToken> cache_;                         // [num_blocks * kBlockSize]
  std::map<int32_t, std::vector<int32_t>> bound_history_;  // sampler slot -> tokens
  std::deque<std::vector<SampledToken>> sampled_;          // of the steps in flight
  mutable std::mutex mutex_;
  std::vector<LaunchedStep> launched_steps_;  // guarded by mutex_
};

}  // namespace tidal
