// Times the engine's real step path, without queue and network: the same batches, layer loop and
// backend that serve. Contexts hold K and V of random tokens; every sequence has blocks of its own.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/backend/attention.h"
#include "engine/model_loader.h"
#include "tools/bench_report.h"

namespace tidal {

struct DecodeCase {
  int32_t num_streams = 1;
  int32_t num_context_tokens = 2048;
  AttentionMode mode = AttentionMode::kFull;
  Selection selection = {};  // for kTidal
};

class StepBench {
 public:
  // `model` must outlive this object.
  explicit StepBench(ServingModel* model) : model_(model) {}

  // `num_steps` successive greedy decode steps, contexts growing by a token each, after
  // `num_warmup` steps that do not count. RESOURCE_EXHAUSTED where the KV cache is too small, with
  // numbers.
  absl::StatusOr<DecodeResult> Decode(const DecodeCase& decode_case, int num_warmup, int num_steps);

  // A prompt of random tokens in chunks of the model's max_batch_tokens, `num_runs` times after one
  // that does not count.
  absl::StatusOr<PrefillResult> Prefill(int32_t num_prompt_tokens, int num_runs);

 private:
  // Gives `num_streams` sequences blocks for `num_tokens` each, filled with K and V of random
  // tokens.
  absl::Status FillCache(int32_t num_streams, int32_t num_tokens);
  absl::Status FillBlocks(absl::Span<const int32_t> blocks);
  absl::Status ReserveBlocks(int32_t num_streams, int32_t num_tokens);
  absl::StatusOr<double> TimeStep(const StepBatch& batch);  // seconds

  ServingModel* model_;
  std::vector<std::vector<int32_t>> block_tables_;  // one a stream
  int32_t num_filled_streams_ = 0;                  // of block_tables_
  int32_t num_filled_tokens_ = 0;
  std::vector<SampledToken> sampled_;
};

}  // namespace tidal
