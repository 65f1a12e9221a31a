#include "tools/bench_sequences.h"

#include <numeric>
#include <random>

#include "absl/strings/str_cat.h"
#include "engine/backend/status_macros.h"
#include "engine/block_manager.h"

namespace tidal {

std::vector<int32_t> RandomTokens(int32_t count, int32_t vocab_size, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens;
  tokens.reserve(static_cast<size_t>(count));
  for (int32_t i = 0; i < count; ++i) {
    tokens.push_back(static_cast<int32_t>(random() % static_cast<uint32_t>(vocab_size)));
  }
  return tokens;
}

absl::Status BenchSequences::Reserve(int32_t num_sequences, int32_t num_tokens) {
  const int32_t num_blocks_each = NumBlocksFor(num_tokens);
  const int64_t num_needed = int64_t{num_blocks_each} * num_sequences;
  if (num_needed > model_->num_blocks || num_tokens > model_->max_model_len) {
    return absl::ResourceExhaustedError(
        absl::StrCat(num_sequences, " streams of ", num_tokens, " tokens need ", num_needed,
                     " KV blocks; the cache has ", model_->num_blocks, ", and a context may have ",
                     model_->max_model_len, " tokens"));
  }
  num_filled_sequences_ = 0;
  block_tables_.assign(static_cast<size_t>(num_sequences), {});
  int32_t next_block = 0;
  for (std::vector<int32_t>& table : block_tables_) {
    table.resize(static_cast<size_t>(num_blocks_each));
    std::iota(table.begin(), table.end(), next_block);
    next_block += num_blocks_each;
  }
  return absl::OkStatus();
}

absl::Status BenchSequences::Fill(int32_t num_sequences, int32_t num_tokens) {
  if (num_sequences <= num_filled_sequences_ && num_tokens == num_filled_tokens_) {
    return absl::OkStatus();
  }
  TIDAL_RETURN_IF_ERROR(Reserve(num_sequences, num_tokens));
  for (const std::vector<int32_t>& table : block_tables_) TIDAL_RETURN_IF_ERROR(FillBlocks(table));
  num_filled_sequences_ = num_sequences;
  num_filled_tokens_ = num_tokens;
  return absl::OkStatus();
}

absl::Status BenchSequences::FillBlocks(absl::Span<const int32_t> blocks) {
  Backend* const backend = model_->backend.get();
  const auto blocks_per_chunk = static_cast<size_t>(model_->max_batch_tokens / kBlockSize);
  std::vector<SampledToken> sampled;
  for (size_t begin = 0; begin < blocks.size(); begin += blocks_per_chunk) {
    const absl::Span<const int32_t> table = blocks.subspan(begin, blocks_per_chunk);
    const auto count = static_cast<int32_t>(table.size()) * kBlockSize;
    const std::vector<int32_t> tokens =
        RandomTokens(count, model_->config.shape.vocab_size, static_cast<uint32_t>(table.front()));
    StepBatch batch;
    batch.chunks.push_back(
        {.token_ids = tokens, .num_context_tokens = count, .block_table = table});
    TIDAL_RETURN_IF_ERROR(backend->BeginStep(batch));
    TIDAL_RETURN_IF_ERROR(backend->Embed());
    for (int32_t layer = 0; layer < model_->plan.num_layers(); ++layer) {
      TIDAL_RETURN_IF_ERROR(backend->AttentionInput(layer));
    }
    TIDAL_RETURN_IF_ERROR(backend->EndStep(&sampled));
  }
  return absl::OkStatus();
}

}  // namespace tidal
