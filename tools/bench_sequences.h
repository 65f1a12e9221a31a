// Sequences for benchmarks: blocks of their own in the KV cache, filled with K and V of random
// tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/model_loader.h"

namespace tidal {

std::vector<int32_t> RandomTokens(int32_t count, int32_t vocab_size, uint32_t seed);

// Bytes of an element of weights and KV cache, as the device holds them.
inline double ElementBytes(const ServingModel& model) {
  return model.device == Device::kCuda ? 2.0 : 4.0;
}

class BenchSequences {
 public:
  // `model` must outlive this object.
  explicit BenchSequences(ServingModel* model) : model_(model) {}

  // Gives `num_sequences` sequences blocks for `num_tokens` each. RESOURCE_EXHAUSTED where the KV
  // cache is too small, with numbers.
  absl::Status Reserve(int32_t num_sequences, int32_t num_tokens);

  // Reserve, and K and V in all layers, by the attention input alone: what they are worth to a
  // reader does not matter, their bytes do.
  absl::Status Fill(int32_t num_sequences, int32_t num_tokens);

  absl::Span<const int32_t> block_table(int32_t sequence) const {
    return block_tables_[static_cast<size_t>(sequence)];
  }

 private:
  absl::Status FillBlocks(absl::Span<const int32_t> blocks);

  ServingModel* model_;
  std::vector<std::vector<int32_t>> block_tables_;
  int32_t num_filled_sequences_ = 0;
  int32_t num_filled_tokens_ = 0;
};

}  // namespace tidal
