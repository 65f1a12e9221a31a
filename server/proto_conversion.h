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
bool MatchedStopToProto(const GenerationFinished& finished, api::MatchedStop* matched_stop);

// The token's own log-probability and the most probable ones'. `tokenizer` null: no bytes.
api::TokenLogprob LogprobToProto(const SampledToken& token, const Tokenizer* tokenizer);

// Appends text, token ids and, where asked for, log-probabilities to an api::Choice or
// api::GenerateStreamResponse::Delta.
template <typename Output>
void AppendDelta(const GenerationDelta& delta, bool with_logprobs, const Tokenizer* tokenizer,
                 Output* output) {
  output->mutable_text()->append(delta.text);
  for (const SampledToken& token : delta.tokens) {
    output->add_token_ids(token.token_id);
    if (with_logprobs) *output->add_logprobs() = LogprobToProto(token, tokenizer);
  }
}

// An estimate, never far too low, of what AppendDelta adds to the message on the wire, in bytes.
int64_t WireBytes(const GenerationDelta& delta, bool with_logprobs);

}  // namespace tidal::server
