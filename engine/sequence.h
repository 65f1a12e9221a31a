// A request's state in the engine: a sequence for each of its choices, and a generation for what
// they have in common. Engine thread only; owned by the engine, sequences are scheduled by the
// scheduler.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "engine/engine_observer.h"
#include "engine/generation_observer.h"
#include "engine/output_text.h"
#include "engine/prefix_hash.h"
#include "engine/request.h"

namespace tidal {

// Names a submitted request; grows with the order of submission and is never used twice. Choice i
// of a request has its request's ticket + i.
using RequestTicket = uint64_t;

struct Sequence {
  Sequence(RequestTicket ticket_in, Request request_in, OutputText output_text_in,
           int32_t choice_index_in = 0)
      : ticket(ticket_in),
        choice_index(choice_index_in),
        request(std::move(request_in)),
        output_text(std::move(output_text_in)),
        token_ids(request.prompt_token_ids) {}

  int32_t num_prompt_tokens() const {
    return static_cast<int32_t>(request.prompt_token_ids.size());
  }
  int32_t num_tokens() const { return static_cast<int32_t>(token_ids.size()); }
  // With those that are drawn by steps in flight.
  int32_t num_tokens_ahead() const { return num_tokens() + num_unread_tokens; }
  int32_t num_generated_tokens() const { return num_tokens() - num_prompt_tokens(); }
  absl::Span<const int32_t> generated_token_ids() const {
    return absl::MakeConstSpan(token_ids).subspan(request.prompt_token_ids.size());
  }

  // Tokens that prefill computes: the whole prompt, or, after a preemption, everything but the last
  // generated token, which is then decoded as it would have been.
  int32_t num_prefill_tokens() const {
    return num_tokens_ahead() == num_prompt_tokens() ? num_prompt_tokens() : num_tokens_ahead() - 1;
  }
  bool is_prefilling() const {
    return !is_correcting && num_computed_tokens < num_prefill_tokens();
  }
  // Whether the next decode is one that corrects the KV cache. By the number of the token alone, so
  // that a preemption in between changes nothing.
  bool is_correction_due() const {
    const AttentionOptions& attention = request.attention;
    if (attention.mode == AttentionMode::kFull || attention.correction_interval == 0) return false;
    return (num_tokens_ahead() - num_prompt_tokens()) % attention.correction_interval == 0;
  }
  // Whether steps in flight draw all that it may have.
  bool is_drawn_to_the_end() const {
    return num_tokens_ahead() - num_prompt_tokens() >= request.stopping.max_new_tokens;
  }

  // A token that was drawn by a step that has ended.
  void AppendToken(int32_t token_id) {
    token_ids.push_back(token_id);
    --num_unread_tokens;
  }

  RequestStage stage() const;

  const RequestTicket ticket;
  const int32_t choice_index;
  const Request request;  // with the choice's own seed
  OutputText output_text;

  std::vector<int32_t> token_ids;  // prompt, then generated, as far as they have been read
  // Tokens whose K and V are in the cache once the steps launched so far have run; less than
  // num_tokens_ahead().
  int32_t num_computed_tokens = 0;
  int32_t num_unread_tokens = 0;  // drawn by steps that are in flight
  // The leading ones of these whose K and V full attention has written, so that they depend on
  // nothing but the tokens. Those after a token that was decoded with sparse attention do not.
  int32_t num_exact_tokens = 0;
  // The tokens from num_computed_tokens to the last one are computed anew with full attention; the
  // last one is decoded with them.
  bool is_correcting = false;
  std::vector<int32_t> block_table;  // blocks held; empty while waiting
  int32_t num_offered_blocks = 0;    // leading ones of these that came from the cache or went there
  std::vector<BlockHash> block_hashes;  // of leading full blocks of token_ids; made when needed
  int32_t sampler_slot = -1;            // -1 while waiting

  absl::Time last_token_time = absl::InfinitePast();
  int64_t num_attended_tokens = 0;
  int64_t num_available_tokens = 0;
  int32_t num_preemptions = 0;
  int32_t num_cached_prompt_tokens = 0;  // found in the cache at the first admission
};

struct Generation {
  // Phases up to `end`; one that was never reached is empty.
  Timings TimingsUntil(absl::Time end) const;
  // Counts a choice that has ended.
  void Account(const Sequence& sequence);

  RequestTicket ticket = 0;
  std::string request_id;
  int32_t num_choices = 1;
  std::shared_ptr<GenerationObserver> observer;
  absl::Time arrival_time;
  absl::Time deadline = absl::InfiniteFuture();

  std::vector<Sequence*> live_choices;               // the first alone until its first token
  absl::Time admission_time = absl::InfinitePast();  // of the first choice, first out of the queue
  absl::Time first_token_time = absl::InfinitePast();
  ChoiceEnding first_ending;  // of choice 0, once it has ended
  Usage usage;                // of the choices that have ended
};

}  // namespace tidal
