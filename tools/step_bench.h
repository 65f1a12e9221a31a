// Times the engine's real step path, without queue and network: the same batches, layer loop and
// backend that serve, with as many steps in flight as the backend allows.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/backend/attention.h"
#include "engine/model_loader.h"
#include "tools/bench_report.h"
#include "tools/bench_sequences.h"

namespace tidal {

struct DecodeCase {
  // kProjections runs no attention: the products, what is fused with them, and sampling.
  enum class Work : uint8_t { kWholeStep, kProjections } work = Work::kWholeStep;
  int32_t num_streams = 1;
  int32_t num_context_tokens = 2048;
  AttentionMode mode = AttentionMode::kFull;
  Selection selection = {};  // for kTidal
};

class StepBench {
 public:
  // `read_bandwidth` in bytes a second gives the floor. `model` must outlive this object.
  StepBench(ServingModel* model, double read_bandwidth)
      : model_(model), read_bandwidth_(read_bandwidth), sequences_(model) {}

  // `num_steps` successive greedy decode steps, contexts growing by a token each, after
  // `num_warmup` steps that do not count. A step's time is from its launch, or from the end of the
  // step before it where that is later, to its end. RESOURCE_EXHAUSTED where the KV cache is too
  // small, with numbers.
  absl::StatusOr<DecodeResult> Decode(const DecodeCase& decode_case, int num_warmup, int num_steps);

  // A prompt of random tokens in chunks of the model's max_batch_tokens, `num_runs` times after one
  // that does not count.
  absl::StatusOr<PrefillResult> Prefill(int32_t num_prompt_tokens, int num_runs);

 private:
  using TimePoint = std::chrono::steady_clock::time_point;

  struct StepInFlight {
    StepBatch batch;
    DecodeCase::Work work = DecodeCase::Work::kWholeStep;
    std::vector<int32_t> token_ids;  // that the batch's chunks refer to, where they are decodes
    TimePoint launched;
  };

  StepBatch DecodeBatch(const DecodeCase& decode_case, int32_t num_context_tokens,
                        absl::Span<const int32_t> token_ids) const;
  double StepBytes(const DecodeCase& decode_case, double num_context_tokens) const;

  // Launches a step, and collects the oldest ones until no more than allowed are in flight.
  absl::Status Launch(StepInFlight step);
  absl::Status LaunchProjections(const StepBatch& batch);
  absl::Status CollectAll();
  absl::Status CollectOldest();

  ServingModel* model_;
  double read_bandwidth_;
  BenchSequences sequences_;
  std::deque<StepInFlight> in_flight_;
  TimePoint last_end_;
  std::vector<double> step_seconds_;  // of the steps collected
};

}  // namespace tidal
