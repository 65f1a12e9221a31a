// From a message as a client sent it to a request that the engine can take: every field checked
// against its limit, the prompt tokenised, every default filled in. Knows no gRPC, so that it can
// be tested and fuzzed alone. Stateless: any thread.
//
// Errors are INVALID_ARGUMENT, or UNIMPLEMENTED where nothing else is wrong than that this server
// does not serve something; either names every violation found (the first kMaxViolations of them)
// as `field: value and limit`, and carries them as google.rpc.BadRequest. No text of a prompt is in
// them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/request.h"
#include "engine/tokenizer/tokenizer.h"
#include "tidal/inference/v1/inference.pb.h"

namespace tidal::server {

inline constexpr int kMaxViolations = 16;
inline constexpr size_t kMaxRequestIdBytes = 128;
inline constexpr size_t kMaxCacheSaltBytes = 128;
inline constexpr int kMaxStopStrings = 16;
inline constexpr size_t kMaxStopStringBytes = 1024;
inline constexpr int kMaxStopTokenIds = 256;
inline constexpr int kMaxLogitBiasEntries = 1024;

// What the model and the server's configuration say. Immutable.
struct ValidationContext {
  const Tokenizer* tokenizer = nullptr;  // null: token ids only
  int32_t vocab_size = 0;                // the model's
  int32_t max_request_tokens = 0;        // prompt and output together (Engine::max_request_tokens)
  // Longer texts are refused before they are tokenised (MaxTextBytes).
  int64_t max_text_bytes = 0;
  AttentionOptions default_attention;  // mode and selection of requests that ask for none
  bool has_sparse_layers = false;      // without them, mode tidal is full
};

// What the request takes where it names none.
struct RequestIdentity {
  std::string id;
  uint64_t seed = 0;
};

// An upper limit of the bytes of text that `max_tokens` tokens can stand for.
int64_t MaxTextBytes(const Tokenizer& tokenizer, int32_t max_tokens);

// Leaves arrival_time and deadline to the caller.
absl::StatusOr<Request> ValidateGenerate(const inference::v1::GenerateRequest& message,
                                         const ValidationContext& context,
                                         const RequestIdentity& fallback);
absl::StatusOr<Request> ValidateGenerate(const inference::v1::GenerateStreamRequest& message,
                                         const ValidationContext& context,
                                         const RequestIdentity& fallback);

absl::Status ValidateTokenize(const inference::v1::TokenizeRequest& message,
                              const ValidationContext& context);
absl::Status ValidateDetokenize(const inference::v1::DetokenizeRequest& message,
                                const ValidationContext& context);

}  // namespace tidal::server
