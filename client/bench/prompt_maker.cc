#include "client/bench/prompt_maker.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "client/bench/random.h"

namespace tidal::client {
namespace {

// Enough to draw from beside the special tokens.
constexpr int32_t kMinVocabSize = 16;
// Of the shared prefix; requests use the others.
constexpr uint64_t kPrefixIndex = ~uint64_t{0};

int32_t DrawToken(Random& random, int32_t vocab_size, const std::vector<int32_t>& excluded) {
  while (true) {
    const int32_t id = random.NextInRange(0, vocab_size - 1);
    if (std::find(excluded.begin(), excluded.end(), id) == excluded.end()) return id;
  }
}

}  // namespace

absl::StatusOr<PromptMaker> PromptMaker::Create(const inference::v1::GetModelInfoResponse& info,
                                                int32_t num_shared_prefix_tokens, uint64_t seed) {
  PromptMaker maker;
  maker.vocab_size_ = info.vocab_size();
  maker.seed_ = seed;
  maker.special_ids_.assign(info.bos_token_ids().begin(), info.bos_token_ids().end());
  maker.special_ids_.insert(maker.special_ids_.end(), info.eos_token_ids().begin(),
                            info.eos_token_ids().end());
  const auto num_special = static_cast<int32_t>(maker.special_ids_.size());
  if (maker.vocab_size_ < kMinVocabSize || num_special > maker.vocab_size_ / 2) {
    return absl::FailedPreconditionError(
        absl::StrCat("the server's model has a vocabulary of ", maker.vocab_size_, " tokens, ",
                     num_special, " of them begin or end tokens: too few to make prompts of"));
  }
  if (info.bos_token_ids_size() > 0) maker.prefix_.push_back(info.bos_token_ids(0));
  Random random(DeriveSeed(seed, kPrefixIndex));
  for (int32_t i = 0; i < num_shared_prefix_tokens; ++i) {
    maker.prefix_.push_back(DrawToken(random, maker.vocab_size_, maker.special_ids_));
  }
  return maker;
}

void PromptMaker::Fill(uint64_t index, int32_t num_tokens, inference::v1::TokenIds* prompt) const {
  Random random(DeriveSeed(seed_, index));
  prompt->mutable_ids()->Reserve(num_tokens);
  for (int32_t i = 0; i < num_tokens; ++i) {
    const bool is_shared = i < static_cast<int32_t>(prefix_.size());
    prompt->add_ids(is_shared ? prefix_[static_cast<std::size_t>(i)]
                              : DrawToken(random, vocab_size_, special_ids_));
  }
}

}  // namespace tidal::client
