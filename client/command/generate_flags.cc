#include "client/command/generate_flags.h"

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "client/command/names.h"
#include "client/command/utf8.h"

namespace tidal::client {
namespace {

namespace v1 = inference::v1;

absl::Status ParseTokenIds(absl::string_view text, std::vector<int32_t>* ids) {
  ids->clear();
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    int32_t id = 0;
    if (!absl::SimpleAtoi(part, &id)) {
      return absl::InvalidArgumentError("it must be token ids with commas between them");
    }
    ids->push_back(id);
  }
  return absl::OkStatus();
}

absl::Status ParseLogitBias(absl::string_view text, absl::btree_map<int32_t, float>* biases) {
  biases->clear();
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    const std::pair<absl::string_view, absl::string_view> entry = absl::StrSplit(part, ':');
    int32_t id = 0;
    float bias = 0;
    if (!absl::SimpleAtoi(entry.first, &id) || !absl::SimpleAtof(entry.second, &bias)) {
      return absl::InvalidArgumentError("it must be ID:BIAS entries with commas between them");
    }
    if (!biases->emplace(id, bias).second) {
      return absl::InvalidArgumentError(absl::StrCat("it names token ", id, " twice"));
    }
  }
  return absl::OkStatus();
}

void AddStoppingFlags(FlagSet& flags, GenerateFlags* values) {
  flags.Add("max_new_tokens", &values->max_new_tokens, "N", "generate at most N tokens");
  flags.Add("min_new_tokens", &values->min_new_tokens, "N", "do not end before N tokens");
  flags.AddRepeated("stop", &values->stop_strings, "TEXT", "end at this text; may be repeated");
  flags.AddCustom(
      "stop_token_ids",
      [values](absl::string_view text) { return ParseTokenIds(text, &values->stop_token_ids); },
      "ID,...", "end at one of these tokens");
  flags.Add("ignore_eos", &values->ignore_eos, "", "do not end at the end-of-sequence token");
  flags.Add("include_stop_in_output", &values->include_stop_in_output, "",
            "keep the stop string or token in the text");
}

void FillSampling(const GenerateFlags& flags, v1::SamplingParams* sampling) {
  if (flags.temperature) sampling->set_temperature(*flags.temperature);
  if (flags.top_p) sampling->set_top_p(*flags.top_p);
  if (flags.top_k) sampling->set_top_k(*flags.top_k);
  if (flags.min_p) sampling->set_min_p(*flags.min_p);
  if (flags.repetition_penalty) sampling->set_repetition_penalty(*flags.repetition_penalty);
  if (flags.presence_penalty) sampling->set_presence_penalty(*flags.presence_penalty);
  if (flags.frequency_penalty) sampling->set_frequency_penalty(*flags.frequency_penalty);
  if (flags.seed) sampling->set_seed(*flags.seed);
  for (const auto& [id, bias] : flags.logit_bias) (*sampling->mutable_logit_bias())[id] = bias;
}

void FillStopping(const GenerateFlags& flags, v1::StoppingCriteria* stopping) {
  if (flags.max_new_tokens) stopping->set_max_new_tokens(*flags.max_new_tokens);
  if (flags.min_new_tokens) stopping->set_min_new_tokens(*flags.min_new_tokens);
  for (const std::string& text : flags.stop_strings) stopping->add_stop_strings(text);
  for (const int32_t id : flags.stop_token_ids) stopping->add_stop_token_ids(id);
  if (flags.ignore_eos) stopping->set_ignore_eos(*flags.ignore_eos);
  if (flags.include_stop_in_output) {
    stopping->set_include_stop_in_output(*flags.include_stop_in_output);
  }
}

template <typename Request>
void FillOptionFields(const GenerateFlags& flags, Request* request) {
  if (flags.priority) request->set_priority(*flags.priority);
  FillSampling(flags, request->mutable_sampling());
  FillStopping(flags, request->mutable_stopping());
  auto* output = request->mutable_output();
  if (flags.num_top_logprobs) output->set_num_top_logprobs(*flags.num_top_logprobs);
  if (flags.skip_special_tokens) output->set_skip_special_tokens(*flags.skip_special_tokens);
  auto* attention = request->mutable_attention();
  if (flags.attention) attention->set_mode(*flags.attention);
  if (flags.token_budget) attention->set_token_budget(*flags.token_budget);
  if (flags.correction_interval) attention->set_correction_interval(*flags.correction_interval);
}

absl::Status CheckUtf8(absl::string_view flag, absl::string_view text) {
  if (!FindInvalidUtf8(text).has_value()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("the value of --", flag, " is not UTF-8"));
}

template <typename Request>
absl::Status FillPrompt(const GenerateFlags& flags, Console& console, Request* request) {
  if (flags.token_ids.empty()) {
    absl::StatusOr<std::string> text = ReadPrompt(flags.prompt, console);
    if (!text.ok()) return text.status();
    request->set_text(*std::move(text));
    return absl::OkStatus();
  }
  if (HasPrompt(flags.prompt)) {
    return absl::InvalidArgumentError("--token_ids is itself the prompt; give no other one");
  }
  for (const int32_t id : flags.token_ids) request->mutable_token_ids()->add_ids(id);
  return absl::OkStatus();
}

template <typename Request>
absl::Status Fill(const GenerateFlags& flags, Console& console, Request* request) {
  for (const std::string& text : flags.stop_strings) {
    if (absl::Status status = CheckUtf8("stop", text); !status.ok()) return status;
  }
  if (absl::Status status = CheckUtf8("request_id", flags.request_id); !status.ok()) return status;
  if (absl::Status status = FillPrompt(flags, console, request); !status.ok()) return status;

  request->set_request_id(flags.request_id);
  FillOptionFields(flags, request);
  return absl::OkStatus();
}

}  // namespace

void AddSamplingFlags(FlagSet& flags, GenerateFlags* values) {
  flags.Add("temperature", &values->temperature, "X", "0 = greedy");
  flags.Add("top_p", &values->top_p, "X", "keep the most probable tokens up to this mass");
  flags.Add("top_k", &values->top_k, "N", "keep the N most probable tokens; 0 = all");
  flags.Add("min_p", &values->min_p, "X", "drop tokens below X times the most probable one");
  flags.Add("repetition_penalty", &values->repetition_penalty, "X",
            "divides the logits of tokens seen before");
  flags.Add("presence_penalty", &values->presence_penalty, "X",
            "subtracted once from the logits of generated tokens");
  flags.Add("frequency_penalty", &values->frequency_penalty, "X",
            "subtracted for each time that a token was generated");
  flags.Add("seed", &values->seed, "N", "the same seed gives the same text");
  flags.AddCustom(
      "logit_bias",
      [values](absl::string_view text) { return ParseLogitBias(text, &values->logit_bias); },
      "ID:BIAS,...", "added to the logits of these tokens");
}

void AddAttentionFlags(FlagSet& flags, GenerateFlags* values) {
  flags.AddCustom(
      "attention",
      [values](absl::string_view text) {
        const auto mode = ParseAttentionMode(text);
        if (mode.ok()) values->attention = *mode;
        return mode.status();
      },
      "MODE", "full, tidal or quest");
  flags.Add("token_budget", &values->token_budget, "N", "positions that a sparse layer attends");
  flags.Add("correction_interval", &values->correction_interval, "N",
            "tokens between corrections of the KV cache; 0 = never");
}

void FillOptions(const GenerateFlags& flags, v1::GenerateStreamRequest* request) {
  FillOptionFields(flags, request);
}

void AddGenerateFlags(FlagSet& flags, GenerateFlags* values) {
  AddPromptFlags(flags, &values->prompt);
  flags.AddCustom(
      "token_ids",
      [values](absl::string_view text) { return ParseTokenIds(text, &values->token_ids); },
      "ID,...", "the prompt as token ids, used as they are");
  AddStoppingFlags(flags, values);
  AddSamplingFlags(flags, values);
  AddAttentionFlags(flags, values);
  flags.Add("num_top_logprobs", &values->num_top_logprobs, "N",
            "log-probabilities of each token and N others (printed with --json)");
  flags.Add("skip_special_tokens", &values->skip_special_tokens, "",
            "leave special tokens out of the text; on by default");
  flags.Add("priority", &values->priority, "N", "higher ones leave the queue first");
  flags.Add("request_id", &values->request_id, "ID", "names the request in the server's logs");
  flags.Add("retry_for", &values->retry_for, "DURATION",
            "try so long again while the server is unavailable; 0 by default");
  flags.Add("no_stream", &values->no_stream, "", "print the text when it is complete");
}

absl::Status FillRequest(const GenerateFlags& flags, Console& console,
                         v1::GenerateRequest* request) {
  return Fill(flags, console, request);
}

absl::Status FillRequest(const GenerateFlags& flags, Console& console,
                         v1::GenerateStreamRequest* request) {
  return Fill(flags, console, request);
}

}  // namespace tidal::client
