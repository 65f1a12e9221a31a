// Any bytes that parse as a request are validated without a crash, and what passes keeps every
// limit.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "server/request_validation.h"
#include "server/status_mapping.h"
#include "tests/engine/fake_tokenizer.h"
#include "tidal/inference/v1/inference.pb.h"

namespace {

constexpr int32_t kVocabSize = 256;
constexpr int32_t kMaxRequestTokens = 64;

void Require(bool condition) {
  if (!condition) std::abort();
}

const tidal::server::ValidationContext& Context() {
  static const auto* const tokenizer = new tidal::FakeTokenizer(tidal::FakeTokenizer::OfBytes());
  static const auto* const context = new tidal::server::ValidationContext{
      .tokenizer = tokenizer,
      .vocab_size = kVocabSize,
      .max_request_tokens = kMaxRequestTokens,
      .max_text_bytes = tidal::server::MaxTextBytes(*tokenizer, kMaxRequestTokens),
      .default_attention = {.mode = tidal::AttentionMode::kTidal,
                            .selection = {.scope = tidal::SelectionScope::kKvHead,
                                          .token_budget = 32,
                                          .num_sink_tokens = 2,
                                          .num_recent_tokens = 4}},
      .has_sparse_layers = true};
  return *context;
}

void RequireWithinLimits(const tidal::Request& request) {
  const auto num_prompt_tokens = static_cast<int32_t>(request.prompt_token_ids.size());
  Require(!request.id.empty() && request.id.size() <= tidal::server::kMaxRequestIdBytes);
  Require(num_prompt_tokens >= 1 && request.stopping.max_new_tokens >= 1);
  Require(request.stopping.max_new_tokens <= kMaxRequestTokens - num_prompt_tokens);
  for (const int32_t id : request.prompt_token_ids) Require(id >= 0 && id < kVocabSize);
  for (const int32_t id : request.stopping.stop_token_ids) Require(id >= 0 && id < kVocabSize);
  for (const tidal::LogitBias& entry : request.sampling.logit_bias) {
    Require(entry.token_id >= 0 && entry.token_id < kVocabSize);
    Require(entry.bias >= -100.0f && entry.bias <= 100.0f);
  }
  const tidal::SamplingParams& sampling = request.sampling;
  Require(sampling.temperature >= 0.0f && sampling.temperature <= 100.0f);
  Require(sampling.top_p > 0.0f && sampling.top_p <= 1.0f);
  Require(sampling.min_p >= 0.0f && sampling.min_p <= 1.0f);
  Require(sampling.repetition_penalty > 0.0f && sampling.repetition_penalty <= 10.0f);
  Require(sampling.min_new_tokens >= 0 &&
          sampling.min_new_tokens <= request.stopping.max_new_tokens);
  Require(sampling.num_top_logprobs >= 0 && sampling.num_top_logprobs <= tidal::kMaxTopLogprobs);
  Require(request.attention.correction_interval >= 0);
  Require(request.attention.selection.token_budget >= 6 &&
          request.attention.selection.token_budget <= tidal::kMaxTokenBudget);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  tidal::inference::v1::GenerateRequest message;
  if (!message.ParseFromArray(data, static_cast<int>(size))) return 0;
  const absl::StatusOr<tidal::Request> request =
      tidal::server::ValidateGenerate(message, Context(), {.id = "made", .seed = 1});
  if (request.ok()) {
    RequireWithinLimits(*request);
    return 0;
  }
  Require(absl::IsInvalidArgument(request.status()) || absl::IsUnimplemented(request.status()));
  Require(request.status().GetPayload(tidal::server::kBadRequestTypeUrl).has_value());
  // Both copies of the message and the details fit into a client's 8 KiB of metadata.
  const grpc::Status status = tidal::server::ToGrpcStatus(request.status());
  Require(status.error_message().size() + status.error_details().size() * 4 / 3 < 8000);
  return 0;
}
