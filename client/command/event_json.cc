#include "client/command/event_json.h"

#include <string>

#include "client/command/generation_summary.h"
#include "client/command/names.h"
#include "client/rpc_status.h"

namespace tidal::client {
namespace {

namespace v1 = inference::v1;
using Json = nlohmann::ordered_json;

Json BytesJson(const std::string& bytes) {
  Json array = Json::array();
  for (const char byte : bytes) array.push_back(static_cast<unsigned char>(byte));
  return array;
}

Json AttentionJson(const v1::EffectiveAttention& attention) {
  Json json = {{"mode", AttentionModeName(attention.mode())}};
  if (attention.mode() == v1::ATTENTION_MODE_FULL) return json;
  json["token_budget"] = attention.token_budget();
  json["correction_interval"] = attention.correction_interval();
  json["selection_scope"] = SelectionScopeName(attention.selection_scope());
  json["sink_tokens"] = attention.sink_tokens();
  json["recent_tokens"] = attention.recent_tokens();
  json["full_layers"] = attention.full_layers();
  json["selection_layers"] = attention.selection_layers();
  return json;
}

Json LogprobJson(const v1::TokenLogprob& logprob) {
  Json json = {{"token_id", logprob.token_id()},
               {"token", logprob.token()},
               {"bytes", BytesJson(logprob.token())},
               {"logprob", logprob.logprob()}};
  if (logprob.top_size() > 0) {
    json["top"] = Json::array();
    for (const auto& top : logprob.top()) json["top"].push_back(LogprobJson(top));
  }
  return json;
}

template <typename Logprobs>
Json LogprobsJson(const Logprobs& logprobs) {
  Json json = Json::array();
  for (const auto& logprob : logprobs) json.push_back(LogprobJson(logprob));
  return json;
}

// null where nothing matched.
Json MatchedStopJson(const v1::MatchedStop& stop) {
  switch (stop.stop_case()) {
    case v1::MatchedStop::kText:
      return {{"text", stop.text()}};
    case v1::MatchedStop::kTokenId:
      return {{"token_id", stop.token_id()}};
    default:
      return nullptr;
  }
}

Json UsageJson(const v1::Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens()},
          {"cached_prompt_tokens", usage.cached_prompt_tokens()},
          {"generated_tokens", usage.generated_tokens()},
          {"attended_tokens", usage.attended_tokens()},
          {"available_tokens", usage.available_tokens()},
          {"preemptions", usage.preemptions()}};
}

Json TimingsJson(const v1::Timings& timings) {
  return {{"queue_seconds", timings.queue_seconds()},
          {"prefill_seconds", timings.prefill_seconds()},
          {"decode_seconds", timings.decode_seconds()},
          {"end_to_end_seconds", timings.end_to_end_seconds()},
          {"time_to_first_token_seconds", timings.time_to_first_token_seconds()}};
}

// Usage and timings, and what follows from them; null where there is nothing to divide by.
void AddSummary(const v1::Usage& usage, const v1::Timings& timings, Json& json) {
  json["usage"] = UsageJson(usage);
  json["timings"] = TimingsJson(timings);
  const auto share = AttendedShare(usage);
  json["attended_share"] = share.has_value() ? Json(*share) : Json();
  const auto rate = DecodeTokensPerSecond(usage, timings);
  json["decode_tokens_per_second"] = rate.has_value() ? Json(*rate) : Json();
}

Json StartedJson(const v1::GenerateStreamResponse::Started& started) {
  return {{"event", "started"},
          {"request_id", started.request_id()},
          {"prompt_tokens", started.prompt_tokens()},
          {"cached_prompt_tokens", started.cached_prompt_tokens()},
          {"attention", AttentionJson(started.attention())},
          {"seed", started.seed()}};
}

Json DeltaJson(const v1::GenerateStreamResponse::Delta& delta) {
  Json json = {{"event", "delta"},
               {"choice_index", delta.choice_index()},
               {"text", delta.text()},
               {"token_ids", delta.token_ids()}};
  if (delta.logprobs_size() > 0) json["logprobs"] = LogprobsJson(delta.logprobs());
  return json;
}

Json FinishedJson(const v1::GenerateStreamResponse::Finished& finished) {
  Json json = {{"event", "finished"},
               {"finish_reason", FinishReasonName(finished.finish_reason())},
               {"matched_stop", MatchedStopJson(finished.matched_stop())}};
  AddSummary(finished.usage(), finished.timings(), json);
  return json;
}

Json ChoiceJson(const v1::Choice& choice) {
  Json json = {{"index", choice.index()},
               {"text", choice.text()},
               {"token_ids", choice.token_ids()},
               {"finish_reason", FinishReasonName(choice.finish_reason())},
               {"matched_stop", MatchedStopJson(choice.matched_stop())}};
  if (choice.logprobs_size() > 0) json["logprobs"] = LogprobsJson(choice.logprobs());
  return json;
}

}  // namespace

Json EventJson(const v1::GenerateStreamResponse& event) {
  switch (event.event_case()) {
    case v1::GenerateStreamResponse::kStarted:
      return StartedJson(event.started());
    case v1::GenerateStreamResponse::kProgress:
      return {{"event", "progress"},
              {"prefilled_tokens", event.progress().prefilled_tokens()},
              {"total_tokens", event.progress().total_tokens()}};
    case v1::GenerateStreamResponse::kDelta:
      return DeltaJson(event.delta());
    case v1::GenerateStreamResponse::kFinished:
      return FinishedJson(event.finished());
    default:
      return {{"event", "unknown"}};
  }
}

Json ResponseJson(const v1::GenerateResponse& response) {
  Json json = {{"event", "response"}, {"request_id", response.request_id()}};
  json["choices"] = Json::array();
  for (const auto& choice : response.choices()) json["choices"].push_back(ChoiceJson(choice));
  AddSummary(response.usage(), response.timings(), json);
  json["attention"] = AttentionJson(response.attention());
  json["seed"] = response.seed();
  return json;
}

Json ErrorJson(const absl::Status& status) {
  Json json = {{"event", "error"},
               {"code", absl::StatusCodeToString(status.code())},
               {"message", std::string(status.message())}};
  for (const FieldViolation& violation : FieldViolationsOf(status)) {
    json["field_violations"].push_back(
        {{"field", violation.field}, {"description", violation.description}});
  }
  if (const auto delay = RetryDelayOf(status)) {
    json["retry_delay_seconds"] = absl::ToDoubleSeconds(*delay);
  }
  return json;
}

Json TokensJson(const v1::TokenizeResponse& response) {
  Json tokens = Json::array();
  for (int i = 0; i < response.token_ids_size(); ++i) {
    Json token = {{"token_id", response.token_ids(i)}};
    if (i < response.tokens_size()) {
      token["token"] = response.tokens(i);
      token["bytes"] = BytesJson(response.tokens(i));
    }
    tokens.push_back(std::move(token));
  }
  return {{"tokens", std::move(tokens)}};
}

Json ModelInfoJson(const v1::GetModelInfoResponse& info) {
  const auto& limits = info.limits();
  return {{"model_name", info.model_name()},
          {"architecture", info.architecture()},
          {"server_version", info.server_version()},
          {"device", info.device()},
          {"num_layers", info.num_layers()},
          {"hidden_size", info.hidden_size()},
          {"num_query_heads", info.num_query_heads()},
          {"num_kv_heads", info.num_kv_heads()},
          {"head_dim", info.head_dim()},
          {"vocab_size", info.vocab_size()},
          {"bos_token_ids", info.bos_token_ids()},
          {"eos_token_ids", info.eos_token_ids()},
          {"default_attention", AttentionJson(info.default_attention())},
          {"limits",
           {{"max_model_len", limits.max_model_len()},
            {"max_batch_tokens", limits.max_batch_tokens()},
            {"max_running_requests", limits.max_running_requests()},
            {"max_queued_requests", limits.max_queued_requests()},
            {"max_queued_tokens", limits.max_queued_tokens()},
            {"kv_cache_tokens", limits.kv_cache_tokens()},
            {"max_token_budget", limits.max_token_budget()}}}};
}

void WriteJsonLine(const Json& json, std::ostream& out) {
  out << json.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n" << std::flush;
}

}  // namespace tidal::client
