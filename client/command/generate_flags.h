// The flags of `tidal-client generate`, and the requests that they describe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/command/flag_set.h"
#include "client/command/prompt_source.h"
#include "tidal/inference/v1/inference.pb.h"

namespace tidal::client {

// A field that is absent is left to the server. Ranges are the server's to check.
struct GenerateFlags {
  PromptSource prompt;
  std::vector<int32_t> token_ids;
  std::string request_id;
  std::optional<int32_t> priority;
  bool no_stream = false;
  // How long a server that is not there is tried again.
  absl::Duration retry_for = absl::ZeroDuration();

  std::optional<float> temperature;
  std::optional<float> top_p;
  std::optional<int32_t> top_k;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::optional<float> presence_penalty;
  std::optional<float> frequency_penalty;
  std::optional<uint64_t> seed;
  absl::btree_map<int32_t, float> logit_bias;

  std::optional<int32_t> max_new_tokens;
  std::optional<int32_t> min_new_tokens;
  std::vector<std::string> stop_strings;
  std::vector<int32_t> stop_token_ids;
  std::optional<bool> ignore_eos;
  std::optional<bool> include_stop_in_output;

  std::optional<int32_t> num_top_logprobs;
  std::optional<bool> skip_special_tokens;

  std::optional<inference::v1::AttentionMode> attention;
  std::optional<int32_t> token_budget;
  std::optional<int32_t> correction_interval;
};

// `values` must outlive `flags`.
void AddGenerateFlags(FlagSet& flags, GenerateFlags* values);

// Parts of it, for other commands that generate.
void AddSamplingFlags(FlagSet& flags, GenerateFlags* values);
void AddAttentionFlags(FlagSet& flags, GenerateFlags* values);
// Fills priority, sampling, stopping, output and attention of `request`, not its prompt.
void FillOptions(const GenerateFlags& flags, inference::v1::GenerateStreamRequest* request);

// Reads the prompt and fills `request`; GenerateRequest and GenerateStreamRequest have the same
// fields. INVALID_ARGUMENT where the prompt cannot be read (see ReadPrompt) or a stop string or the
// request id is not UTF-8.
absl::Status FillRequest(const GenerateFlags& flags, Console& console,
                         inference::v1::GenerateRequest* request);
absl::Status FillRequest(const GenerateFlags& flags, Console& console,
                         inference::v1::GenerateStreamRequest* request);

}  // namespace tidal::client
