#include "server/proto_conversion.h"

#include <algorithm>

#include "absl/time/time.h"

namespace tidal::server {
namespace {

// A varint of a token id, and a TokenLogprob of id, float, some bytes of text and their headers.
constexpr int64_t kTokenIdBytes = 4;
constexpr int64_t kLogprobBytes = 24;

api::SelectionScope ToProto(SelectionScope scope) {
  switch (scope) {
    case SelectionScope::kQueryHead:
      return api::SELECTION_SCOPE_QUERY_HEAD;
    case SelectionScope::kKvHead:
      return api::SELECTION_SCOPE_KV_HEAD;
    case SelectionScope::kLayer:
      return api::SELECTION_SCOPE_LAYER;
  }
  return api::SELECTION_SCOPE_UNSPECIFIED;
}

api::AttentionMode ToProto(AttentionMode mode) {
  switch (mode) {
    case AttentionMode::kFull:
      return api::ATTENTION_MODE_FULL;
    case AttentionMode::kTidal:
      return api::ATTENTION_MODE_TIDAL;
    case AttentionMode::kQuest:
      return api::ATTENTION_MODE_QUEST;
  }
  return api::ATTENTION_MODE_UNSPECIFIED;
}

void SetLogprob(int32_t token_id, float logprob, const Tokenizer* tokenizer,
                api::TokenLogprob* proto) {
  proto->set_token_id(token_id);
  proto->set_logprob(logprob);
  if (tokenizer != nullptr) proto->set_token(std::string(tokenizer->TokenBytes(token_id)));
}

}  // namespace

api::EffectiveAttention ToProto(const AttentionOptions& attention, const LayerPlan& plan) {
  api::EffectiveAttention proto;
  proto.set_mode(ToProto(attention.mode));
  if (attention.mode == AttentionMode::kFull) return proto;
  proto.set_token_budget(attention.selection.token_budget);
  proto.set_correction_interval(attention.correction_interval);
  proto.set_sink_tokens(attention.selection.num_sink_tokens);
  proto.set_recent_tokens(attention.selection.num_recent_tokens);
  if (attention.mode == AttentionMode::kQuest) {
    for (int32_t layer = 0; layer < plan.num_layers(); ++layer) {
      const bool is_full = plan.pass(layer).kind(attention.mode) == AttentionKind::kFull;
      if (is_full) proto.add_full_layers(layer);
    }
    return proto;
  }
  proto.set_selection_scope(ToProto(attention.selection.scope));
  for (int32_t layer = 0; layer < plan.num_layers(); ++layer) {
    if (plan.role(layer) != LayerRole::kSparse) proto.add_full_layers(layer);
    if (plan.role(layer) == LayerRole::kSelect) proto.add_selection_layers(layer);
  }
  return proto;
}

api::FinishReason ToProto(FinishReason reason) {
  switch (reason) {
    case FinishReason::kEndOfSequence:
      return api::FINISH_REASON_END_OF_SEQUENCE;
    case FinishReason::kStopToken:
      return api::FINISH_REASON_STOP_TOKEN;
    case FinishReason::kStopString:
      return api::FINISH_REASON_STOP_STRING;
    case FinishReason::kLength:
      return api::FINISH_REASON_LENGTH;
  }
  return api::FINISH_REASON_UNSPECIFIED;
}

api::Usage ToProto(const Usage& usage) {
  api::Usage proto;
  proto.set_prompt_tokens(usage.num_prompt_tokens);
  proto.set_cached_prompt_tokens(usage.num_cached_prompt_tokens);
  proto.set_generated_tokens(usage.num_generated_tokens);
  proto.set_attended_tokens(usage.num_attended_tokens);
  proto.set_available_tokens(usage.num_available_tokens);
  proto.set_preemptions(usage.num_preemptions);
  return proto;
}

api::Timings ToProto(const Timings& timings) {
  api::Timings proto;
  proto.set_queue_seconds(absl::ToDoubleSeconds(timings.queue));
  proto.set_prefill_seconds(absl::ToDoubleSeconds(timings.prefill));
  proto.set_decode_seconds(absl::ToDoubleSeconds(timings.decode));
  proto.set_end_to_end_seconds(absl::ToDoubleSeconds(timings.end_to_end));
  proto.set_time_to_first_token_seconds(absl::ToDoubleSeconds(timings.time_to_first_token));
  return proto;
}

bool MatchedStopToProto(const ChoiceEnding& ending, api::MatchedStop* matched_stop) {
  if (ending.matched_stop_string.has_value()) {
    matched_stop->set_text(*ending.matched_stop_string);
    return true;
  }
  if (ending.matched_token_id.has_value()) {
    matched_stop->set_token_id(*ending.matched_token_id);
    return true;
  }
  return false;
}

api::TokenLogprob LogprobToProto(const SampledToken& token, const Tokenizer* tokenizer) {
  api::TokenLogprob proto;
  SetLogprob(token.token_id, token.logprob, tokenizer, &proto);
  for (const TokenLogprob& top : token.top_logprobs) {
    SetLogprob(top.token_id, top.logprob, tokenizer, proto.add_top());
  }
  return proto;
}

int64_t WireBytes(const GenerationDelta& delta, bool with_logprobs) {
  auto bytes = static_cast<int64_t>(delta.text.size());
  for (const SampledToken& token : delta.tokens) {
    bytes += kTokenIdBytes;
    if (!with_logprobs) continue;
    bytes += kLogprobBytes * (1 + static_cast<int64_t>(token.top_logprobs.size()));
  }
  return bytes;
}

}  // namespace tidal::server
