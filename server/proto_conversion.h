// From the engine's types to the API's messages. Stateless.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/engine_observer.h"
#include "engine/generation_observer.h"
#include "engine/layer_plan.h"
#include "engine/request.h"
#include "engine/tokenizer/tokenizer.h"
#include "tidal/inference/v1/attention.pb.h"
#include "tidal/inference/v1/inference.pb.h"

namespace tidal::server {

namespace api = ::tidal::inference::v1;

// What a request with these options runs with. Mode full has no further fields.
api::EffectiveAttention ToProto(const AttentionOptions& attention, const LayerPlan& plan);

api::FinishReason ToProto(FinishReason reason);
api::Usage ToProto(const Usage& usage);
api::Timings ToProto(const Timings& timings);

// Leaves *matched_stop alone, and returns false, where nothing matched.
bool MatchedStopToProto(const ChoiceEnding& ending, api::MatchedStop* matched_stop);

// The token's own log-probability and the most probable ones'. `tokenizer` null: no bytes.
api::TokenLogprob LogprobToProto(const SampledToken& token, const Tokenizer* tokenizer);

// Sets finish_reason and matched_stop of an api::Choice, api::GenerateStreamResponse::Delta or
// api::GenerateStreamResponse::Finished.
template <typename Output>
void SetEnding(const ChoiceEnding& ending, Output* output) {
  output->set_finish_reason(ToProto(ending.reason));
  api::MatchedStop matched_stop;
  if (MatchedStopToProto(ending, &matched_stop)) *output->mutable_matched_stop() = matched_stop;
}

// Appends text, token ids, where asked for log-probabilities, and in the end how the choice ended,
// to an api::Choice or api::GenerateStreamResponse::Delta.
template <typename Output>
void AppendDelta(const GenerationDelta& delta, bool with_logprobs, const Tokenizer* tokenizer,
                 Output* output) {
  output->mutable_text()->append(delta.text);
  for (const SampledToken& token : delta.tokens) {
    output->add_token_ids(token.token_id);
    if (with_logprobs) *output->add_logprobs() = LogprobToProto(token, tokenizer);
  }
  if (delta.ending.has_value()) SetEnding(*delta.ending, output);
}

// An estimate, never far too low, of what AppendDelta adds to the message on the wire, in bytes.
int64_t WireBytes(const GenerationDelta& delta, bool with_logprobs);

}  // namespace tidal::server
