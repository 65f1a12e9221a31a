#include "server/request_validation.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/violations.h"

namespace tidal::server {
namespace {

namespace api = ::tidal::inference::v1;

constexpr int32_t kMaxInt32 = std::numeric_limits<int32_t>::max();

// The fields that GenerateRequest and GenerateStreamRequest share. The message must outlive it.
struct GenerateFields {
  const google::protobuf::Message& message;
  const std::string& request_id;
  const std::string* text;         // null where the prompt is not text
  const api::TokenIds* token_ids;  // null where it is not token ids
  const api::SamplingParams& sampling;
  const api::StoppingCriteria& stopping;
  const api::OutputOptions& output;
  const api::AttentionOptions& attention;
  std::optional<int32_t> priority;
  int32_t num_choices;
  const std::string& cache_salt;
};

template <typename Message>
GenerateFields FieldsOf(const Message& message) {
  return {
      .message = message,
      .request_id = message.request_id(),
      .text = message.has_text() ? &message.text() : nullptr,
      .token_ids = message.has_token_ids() ? &message.token_ids() : nullptr,
      .sampling = message.sampling(),
      .stopping = message.stopping(),
      .output = message.output(),
      .attention = message.attention(),
      .priority = message.has_priority() ? std::make_optional(message.priority()) : std::nullopt,
      .num_choices = message.has_num_choices() ? message.num_choices() : 1,
      .cache_salt = message.cache_salt()};
}

// Names the first id that is not in the vocabulary.
template <typename Ids>
void CheckTokenIds(absl::string_view field, const Ids& ids, int32_t vocab_size,
                   Violations* violations) {
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < vocab_size) continue;
    violations->CheckClosed(absl::StrCat(field, "[", i, "]"), ids[i], 0, vocab_size - 1);
    return;
  }
}

std::string CheckRequestId(const std::string& id, const std::string& fallback,
                           Violations* violations) {
  if (id.empty()) return fallback;
  if (id.size() > kMaxRequestIdBytes) {
    violations->AddInvalid(
        "request_id", absl::StrCat("has ", id.size(), " bytes, more than ", kMaxRequestIdBytes));
    return id;
  }
  const auto bad = std::find_if(id.begin(), id.end(), [](char c) { return c < 0x20 || c > 0x7e; });
  if (bad != id.end()) {
    violations->AddInvalid("request_id",
                           absl::StrCat("byte ", bad - id.begin(), " is not printable ASCII"));
  }
  return id;
}

SamplingParams CheckSampling(const api::SamplingParams& message, const ValidationContext& context,
                             uint64_t fallback_seed, Violations* violations) {
  SamplingParams params;
  if (message.has_temperature()) params.temperature = message.temperature();
  violations->CheckClosed("sampling.temperature", params.temperature, 0.0f, 100.0f);
  if (message.has_top_p()) params.top_p = message.top_p();
  violations->CheckHalfOpen("sampling.top_p", params.top_p, 0.0f, 1.0f);
  if (message.has_top_k()) params.top_k = message.top_k();
  violations->CheckClosed("sampling.top_k", params.top_k, 0, kMaxInt32);
  if (message.has_min_p()) params.min_p = message.min_p();
  violations->CheckClosed("sampling.min_p", params.min_p, 0.0f, 1.0f);
  if (message.has_repetition_penalty()) params.repetition_penalty = message.repetition_penalty();
  violations->CheckHalfOpen("sampling.repetition_penalty", params.repetition_penalty, 0.0f, 10.0f);
  if (message.has_presence_penalty()) params.presence_penalty = message.presence_penalty();
  violations->CheckClosed("sampling.presence_penalty", params.presence_penalty, -2.0f, 2.0f);
  if (message.has_frequency_penalty()) params.frequency_penalty = message.frequency_penalty();
  violations->CheckClosed("sampling.frequency_penalty", params.frequency_penalty, -2.0f, 2.0f);
  params.seed = message.has_seed() ? message.seed() : fallback_seed;

  if (message.logit_bias_size() > kMaxLogitBiasEntries) {
    violations->AddInvalid("sampling.logit_bias",
                           absl::StrCat("has ", message.logit_bias_size(), " entries, more than ",
                                        kMaxLogitBiasEntries));
    return params;
  }
  for (const auto& [token_id, bias] : message.logit_bias()) {
    params.logit_bias.push_back({token_id, bias});
  }
  // A map has no order; errors and arithmetic shall have one.
  std::sort(params.logit_bias.begin(), params.logit_bias.end(),
            [](const LogitBias& a, const LogitBias& b) { return a.token_id < b.token_id; });
  for (const LogitBias& entry : params.logit_bias) {
    if (entry.token_id < 0 || entry.token_id >= context.vocab_size) {
      violations->AddInvalid("sampling.logit_bias",
                             absl::StrCat("token id ", entry.token_id, " is not in [0, ",
                                          context.vocab_size - 1, "]"));
    }
    violations->CheckClosed(absl::StrCat("sampling.logit_bias[", entry.token_id, "]"), entry.bias,
                            -100.0f, 100.0f);
  }
  return params;
}

// Everything but max_new_tokens, whose default and limit depend on the prompt.
StoppingCriteria CheckStopping(const api::StoppingCriteria& message,
                               const ValidationContext& context, Violations* violations) {
  StoppingCriteria stopping;
  stopping.ignore_eos = message.ignore_eos();
  stopping.include_stop_in_output = message.include_stop_in_output();
  if (message.stop_strings_size() > kMaxStopStrings) {
    violations->AddInvalid(
        "stopping.stop_strings",
        absl::StrCat("has ", message.stop_strings_size(), " entries, more than ", kMaxStopStrings));
  } else {
    stopping.stop_strings.assign(message.stop_strings().begin(), message.stop_strings().end());
  }
  for (size_t i = 0; i < stopping.stop_strings.size(); ++i) {
    const size_t size = stopping.stop_strings[i].size();
    if (size >= 1 && size <= kMaxStopStringBytes) continue;
    violations->AddInvalid(
        absl::StrCat("stopping.stop_strings[", i, "]"),
        absl::StrCat("has ", size, " bytes, not in [1, ", kMaxStopStringBytes, "]"));
  }
  if (!stopping.stop_strings.empty() && context.tokenizer == nullptr) {
    violations->AddInvalid("stopping.stop_strings",
                           "cannot match: this model has no tokenizer, so it yields no text");
  }
  if (message.stop_token_ids_size() > kMaxStopTokenIds) {
    violations->AddInvalid("stopping.stop_token_ids",
                           absl::StrCat("has ", message.stop_token_ids_size(),
                                        " entries, more than ", kMaxStopTokenIds));
  } else {
    CheckTokenIds("stopping.stop_token_ids", message.stop_token_ids(), context.vocab_size,
                  violations);
    stopping.stop_token_ids.assign(message.stop_token_ids().begin(),
                                   message.stop_token_ids().end());
  }
  return stopping;
}

void CheckTokenBudget(const api::AttentionOptions& message, Selection* selection,
                      Violations* violations) {
  if (!message.has_token_budget()) return;
  const int32_t token_budget = message.token_budget();
  selection->token_budget = token_budget;
  if (token_budget < 1 || token_budget > kMaxTokenBudget) {
    violations->CheckClosed("attention.token_budget", token_budget, 1, kMaxTokenBudget);
    return;
  }
  const int32_t num_kept = selection->num_sink_tokens + std::max(selection->num_recent_tokens, 1);
  if (token_budget < num_kept) {
    violations->AddInvalid(
        "attention.token_budget",
        absl::StrCat(token_budget, " is less than the ", num_kept,
                     " positions that the server's sink_tokens of ", selection->num_sink_tokens,
                     " and recent_tokens of ", selection->num_recent_tokens, " keep"));
  }
}

AttentionOptions CheckAttention(const api::AttentionOptions& message,
                                const ValidationContext& context, Violations* violations) {
  AttentionOptions attention = context.default_attention;
  switch (message.mode()) {
    case api::ATTENTION_MODE_UNSPECIFIED:
      break;
    case api::ATTENTION_MODE_FULL:
      attention.mode = AttentionMode::kFull;
      break;
    case api::ATTENTION_MODE_TIDAL:
      attention.mode = AttentionMode::kTidal;
      break;
    case api::ATTENTION_MODE_QUEST:
      attention.mode = AttentionMode::kQuest;
      break;
    default:
      violations->AddInvalid("attention.mode", absl::StrCat(static_cast<int>(message.mode()),
                                                            " is not an AttentionMode"));
  }
  CheckTokenBudget(message, &attention.selection, violations);
  if (message.has_correction_interval()) {
    attention.correction_interval = message.correction_interval();
    violations->CheckClosed("attention.correction_interval", attention.correction_interval, 0,
                            kMaxInt32);
  }
  if (attention.mode == AttentionMode::kTidal && !context.has_sparse_layers) {
    attention.mode = AttentionMode::kFull;
  }
  return attention;
}

void CheckText(absl::string_view field, const std::string& text, const ValidationContext& context,
               Violations* violations) {
  if (context.tokenizer == nullptr) {
    violations->AddInvalid(field, "this model has no tokenizer; send token_ids");
  } else if (static_cast<int64_t>(text.size()) > context.max_text_bytes) {
    violations->AddInvalid(
        field, absl::StrCat("has ", text.size(), " bytes, more than the ", context.max_text_bytes,
                            " that ", context.max_request_tokens, " tokens can stand for"));
  }
}

// Checks a prompt without tokenising it, and copies one of token ids.
std::vector<int32_t> CheckPrompt(const GenerateFields& fields, const ValidationContext& context,
                                 Violations* violations) {
  if (fields.text != nullptr) {
    CheckText("text", *fields.text, context, violations);
    return {};
  }
  if (fields.token_ids == nullptr) {
    violations->AddInvalid("prompt", "is missing: set text or token_ids");
    return {};
  }
  const auto& ids = fields.token_ids->ids();
  CheckTokenIds("token_ids.ids", ids, context.vocab_size, violations);
  return {ids.begin(), ids.end()};
}

// Prompt and max_new_tokens against the limit of both together; fills in max_new_tokens.
void CheckLengths(const GenerateFields& fields, const ValidationContext& context, Request* request,
                  Violations* violations) {
  const auto num_prompt_tokens = static_cast<int64_t>(request->prompt_token_ids.size());
  const int64_t num_left = context.max_request_tokens - num_prompt_tokens;
  if (num_prompt_tokens == 0) {
    violations->AddInvalid("prompt", "has no tokens");
    return;
  }
  if (num_left < 1) {
    violations->AddInvalid("prompt", absl::StrCat("has ", num_prompt_tokens,
                                                  " tokens, which leaves no room to generate: "
                                                  "prompt and output may have ",
                                                  context.max_request_tokens, " together"));
    return;
  }
  const api::StoppingCriteria& stopping = fields.stopping;
  const int64_t max_new_tokens =
      stopping.has_max_new_tokens() ? stopping.max_new_tokens() : num_left;
  if (max_new_tokens < 1) return;  // has been named already
  if (max_new_tokens > num_left) {
    violations->AddInvalid(
        "stopping.max_new_tokens",
        absl::StrCat(max_new_tokens, " + the prompt's ", num_prompt_tokens,
                     " tokens = ", max_new_tokens + num_prompt_tokens, ", more than the ",
                     context.max_request_tokens, " that prompt and output may have together"));
    return;
  }
  request->stopping.max_new_tokens = static_cast<int32_t>(max_new_tokens);
  if (stopping.min_new_tokens() > max_new_tokens) {
    violations->AddInvalid(
        "stopping.min_new_tokens",
        absl::StrCat(stopping.min_new_tokens(), " is more than max_new_tokens, ", max_new_tokens));
  }
}

absl::StatusOr<Request> Validate(const GenerateFields& fields, const ValidationContext& context,
                                 const RequestIdentity& fallback) {
  Violations violations;
  violations.AddUnknownFields(fields.message);
  Request request;
  request.id = CheckRequestId(fields.request_id, fallback.id, &violations);
  request.sampling = CheckSampling(fields.sampling, context, fallback.seed, &violations);
  request.stopping = CheckStopping(fields.stopping, context, &violations);
  if (fields.stopping.has_max_new_tokens()) {
    violations.CheckClosed("stopping.max_new_tokens", fields.stopping.max_new_tokens(), 1,
                           kMaxInt32);
  }
  violations.CheckClosed("stopping.min_new_tokens", fields.stopping.min_new_tokens(), 0, kMaxInt32);
  request.sampling.min_new_tokens = fields.stopping.min_new_tokens();
  if (fields.output.has_num_top_logprobs()) {
    request.sampling.return_logprobs = true;
    request.sampling.num_top_logprobs = fields.output.num_top_logprobs();
    violations.CheckClosed("output.num_top_logprobs", fields.output.num_top_logprobs(), 0,
                           kMaxTopLogprobs);
  }
  if (fields.output.has_skip_special_tokens()) {
    request.skip_special_tokens = fields.output.skip_special_tokens();
  }
  request.attention = CheckAttention(fields.attention, context, &violations);
  request.priority = fields.priority.value_or(0);
  violations.CheckClosed("priority", request.priority, -100, 100);
  request.num_choices = fields.num_choices;
  violations.CheckClosed("num_choices", request.num_choices, 1, kMaxChoices);
  request.cache_salt = fields.cache_salt;
  if (request.cache_salt.size() > kMaxCacheSaltBytes) {
    violations.AddInvalid("cache_salt", absl::StrCat("has ", request.cache_salt.size(),
                                                     " bytes, more than ", kMaxCacheSaltBytes));
  }
  request.prompt_token_ids = CheckPrompt(fields, context, &violations);

  // Tokenising may take long: not for a request that is refused anyway.
  if (violations.empty() && fields.text != nullptr) {
    absl::StatusOr<std::vector<int32_t>> token_ids =
        context.tokenizer->Encode(*fields.text, EncodeOptions{});
    if (absl::IsInvalidArgument(token_ids.status())) {
      violations.AddInvalid("text", token_ids.status().message());
    } else if (!token_ids.ok()) {
      return token_ids.status();
    } else {
      request.prompt_token_ids = *std::move(token_ids);
    }
  }
  if (violations.empty() || fields.token_ids != nullptr) {
    CheckLengths(fields, context, &request, &violations);
  }
  if (!violations.empty()) return violations.ToStatus();
  return request;
}

}  // namespace

int64_t MaxTextBytes(const Tokenizer& tokenizer, int32_t max_tokens) {
  // Tokens that stand for a whole written-out name, or that normalisation shortens, are not known
  // by their bytes; none is longer than this in any tokenizer served.
  size_t longest = 256;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    longest = std::max(longest, tokenizer.TokenBytes(id).size());
  }
  return static_cast<int64_t>(longest) * max_tokens;
}

absl::StatusOr<Request> ValidateGenerate(const api::GenerateRequest& message,
                                         const ValidationContext& context,
                                         const RequestIdentity& fallback) {
  return Validate(FieldsOf(message), context, fallback);
}

absl::StatusOr<Request> ValidateGenerate(const api::GenerateStreamRequest& message,
                                         const ValidationContext& context,
                                         const RequestIdentity& fallback) {
  return Validate(FieldsOf(message), context, fallback);
}

absl::Status ValidateTokenize(const api::TokenizeRequest& message,
                              const ValidationContext& context) {
  Violations violations;
  violations.AddUnknownFields(message);
  CheckText("text", message.text(), context, &violations);
  return violations.ToStatus();
}

absl::Status ValidateDetokenize(const api::DetokenizeRequest& message,
                                const ValidationContext& context) {
  Violations violations;
  violations.AddUnknownFields(message);
  if (context.tokenizer == nullptr) {
    violations.AddInvalid("token_ids", "this model has no tokenizer");
    return violations.ToStatus();
  }
  if (message.token_ids_size() > context.max_request_tokens) {
    violations.AddInvalid("token_ids",
                          absl::StrCat("has ", message.token_ids_size(), " entries, more than ",
                                       context.max_request_tokens));
  }
  CheckTokenIds("token_ids", message.token_ids(), context.tokenizer->vocab_size(), &violations);
  return violations.ToStatus();
}

}  // namespace tidal::server
