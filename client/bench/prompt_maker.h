// Prompts of random tokens: their lengths are exact, and no two share more of a prefix than asked
// for, so that a prefix cache does not flatter. Immutable: thread-safe.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "tidal/inference/v1/inference.pb.h"
#include "tidal/inference/v1/model.pb.h"

namespace tidal::client {

class PromptMaker {
 public:
  // FAILED_PRECONDITION where the server's answer names no vocabulary that prompts can be drawn
  // from.
  static absl::StatusOr<PromptMaker> Create(const inference::v1::GetModelInfoResponse& info,
                                            int32_t num_shared_prefix_tokens, uint64_t seed);

  // The prompt of request `index`, of `num_tokens` in all: the model's begin token where it has
  // one, the shared prefix, then tokens of its own.
  void Fill(uint64_t index, int32_t num_tokens, inference::v1::TokenIds* prompt) const;

 private:
  PromptMaker() = default;

  std::vector<int32_t> special_ids_;  // not drawn
  std::vector<int32_t> prefix_;
  int32_t vocab_size_ = 0;
  uint64_t seed_ = 0;
};

}  // namespace tidal::client
