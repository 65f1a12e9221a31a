#include "tools/attention_bench.h"

#include <algorithm>
#include <chrono>

#include "engine/backend/status_macros.h"

namespace tidal {
namespace {

// A backend may record a step when it comes again.
constexpr int kNumWarmups = 3;

const char* NameOf(AttentionCase::Kind kind) {
  switch (kind) {
    case AttentionCase::Kind::kFull:
      return "full";
    case AttentionCase::Kind::kSelect:
      return "select";
    case AttentionCase::Kind::kSparse:
      return "sparse";
    case AttentionCase::Kind::kPrefill:
      return "prefill";
  }
  return "";
}

}  // namespace

absl::StatusOr<AttentionResult> AttentionBench::Run(const AttentionCase& attention_case,
                                                    int num_runs) {
  using Kind = AttentionCase::Kind;
  const Kind kind = attention_case.kind;
  const ModelShape& shape = model_->config.shape;
  const bool is_prefill = kind == Kind::kPrefill;
  TIDAL_RETURN_IF_ERROR(
      sequences_.Fill(attention_case.num_streams, attention_case.num_context_tokens));

  const auto num_layers = static_cast<size_t>(shape.num_layers);
  Kinds measured(num_layers, kind == Kind::kSelect   ? AttentionKind::kSelect
                             : kind == Kind::kSparse ? AttentionKind::kSparse
                                                     : AttentionKind::kFull);
  Kinds subtracted;
  if (kind == Kind::kSparse) {
    measured.front() = AttentionKind::kSelect;
    subtracted = {AttentionKind::kSelect};
  }
  const auto num_counted = static_cast<double>(measured.size() - subtracted.size());
  std::vector<double> layer_us;
  for (int run = 0; run < num_runs + kNumWarmups; ++run) {
    TIDAL_ASSIGN_OR_RETURN(const double with, is_prefill ? TimePrefill(attention_case, measured)
                                                         : TimeDecode(attention_case, measured));
    TIDAL_ASSIGN_OR_RETURN(const double without, is_prefill
                                                     ? TimePrefill(attention_case, subtracted)
                                                     : TimeDecode(attention_case, subtracted));
    if (run >= kNumWarmups) layer_us.push_back(1e6 * (with - without) / num_counted);
  }

  const double num_context_tokens = attention_case.num_context_tokens;
  const bool has_budget = kind == Kind::kSelect || kind == Kind::kSparse;
  AttentionResult result = {.kind = NameOf(kind),
                            .num_streams = attention_case.num_streams,
                            .num_context_tokens = attention_case.num_context_tokens,
                            .token_budget = has_budget ? attention_case.selection.token_budget : 0,
                            .layer_us = SpreadOf(layer_us)};
  const double token_bytes = 2.0 * shape.kv_size() * ElementBytes(*model_);
  if (is_prefill) {
    const double num_pairs = 0.5 * num_context_tokens * (num_context_tokens + 1);
    result.layer_flops = attention_case.num_streams * 4.0 * shape.query_size() * num_pairs;
  } else {
    const double num_read =
        kind == Kind::kSparse ? attention_case.selection.token_budget : num_context_tokens;
    result.layer_bytes = attention_case.num_streams * num_read * token_bytes;
    result.floor_us = 1e6 * result.layer_bytes / read_bandwidth_;
  }
  return result;
}

absl::StatusOr<double> AttentionBench::TimeDecode(const AttentionCase& attention_case,
                                                  const Kinds& kinds) {
  for (int32_t stream = 0; stream < attention_case.num_streams; ++stream) {
    TIDAL_RETURN_IF_ERROR(
        model_->runner->BindSampler(stream, SamplingParams{.temperature = 0.0f}, {}, {}));
  }
  const bool selects = attention_case.kind != AttentionCase::Kind::kFull;
  const std::vector<int32_t> tokens =
      RandomTokens(attention_case.num_streams, model_->config.shape.vocab_size, /*seed=*/7);
  StepBatch batch;
  for (int32_t stream = 0; stream < attention_case.num_streams; ++stream) {
    batch.chunks.push_back(
        {.token_ids = absl::MakeConstSpan(tokens).subspan(static_cast<size_t>(stream), 1),
         .num_context_tokens = attention_case.num_context_tokens,
         .block_table = sequences_.block_table(stream),
         .mode = selects ? AttentionMode::kTidal : AttentionMode::kFull,
         .selection = attention_case.selection,
         .sampler_slot = stream,
         .samples = true});  // as a decode does, though nothing is sampled here
  }
  return TimeStep(batch, kinds);
}

absl::StatusOr<double> AttentionBench::TimePrefill(const AttentionCase& attention_case,
                                                   const Kinds& kinds) {
  const std::vector<int32_t> tokens =
      RandomTokens(attention_case.num_context_tokens, model_->config.shape.vocab_size, /*seed=*/9);
  double seconds = 0;
  for (int32_t stream = 0; stream < attention_case.num_streams; ++stream) {
    for (int32_t begin = 0; begin < attention_case.num_context_tokens;
         begin += model_->max_batch_tokens) {
      const int32_t count =
          std::min(model_->max_batch_tokens, attention_case.num_context_tokens - begin);
      StepBatch batch;
      batch.chunks.push_back({.token_ids = absl::MakeConstSpan(tokens).subspan(
                                  static_cast<size_t>(begin), static_cast<size_t>(count)),
                              .num_context_tokens = begin + count,
                              .block_table = sequences_.block_table(stream)});
      TIDAL_ASSIGN_OR_RETURN(const double step_seconds, TimeStep(batch, kinds));
      seconds += step_seconds;
    }
  }
  return seconds;
}

absl::StatusOr<double> AttentionBench::TimeStep(const StepBatch& batch, const Kinds& kinds) {
  Backend* const backend = model_->backend.get();
  std::vector<SampledToken> sampled;
  const auto begin = std::chrono::steady_clock::now();
  TIDAL_RETURN_IF_ERROR(backend->BeginStep(batch));
  TIDAL_RETURN_IF_ERROR(backend->Embed());
  TIDAL_RETURN_IF_ERROR(backend->AttentionInput(0));
  for (size_t layer = 0; layer < kinds.size(); ++layer) {
    AttentionPass pass;
    pass.kind_of_mode.fill(kinds[layer]);
    TIDAL_RETURN_IF_ERROR(backend->Attention(static_cast<int32_t>(layer), pass));
  }
  TIDAL_RETURN_IF_ERROR(backend->EndStep(&sampled));
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace tidal
