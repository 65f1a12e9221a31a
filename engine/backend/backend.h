// The seam between the engine and the arithmetic. A backend owns the weights, the KV cache's
// memory, the samplers' state and its workspaces, all allocated at start-up, and computes one
// step's stages in the order the engine calls them. It knows no requests, no schedule and no layer
// plan.
//
// Life: create -> LoadWeights or FillRandomWeights -> AllocateKvCache -> any number of
//   BindSampler* , BeginStep, Embed, { AttentionInput, Attention, AttentionOutput, Mlp } per layer,
//   Sample, EndStep.
// Stages may run asynchronously, but in the order of the calls, those of several steps and
// BindSampler alike: a block or a sampler slot may be given to another sequence while a step that
// uses it is in flight. EndStep waits for the oldest unfinished step. Not thread-safe: the engine
// thread alone calls it. A Status other than OK from a stage is a device fault: the backend is not
// used again.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/backend/attention.h"
#include "engine/backend/model_shape.h"
#include "engine/backend/sampling.h"
#include "engine/backend/step_batch.h"
#include "engine/backend/tensor_view.h"

namespace tidal {

// What one step may hold at most; a backend sizes its workspaces by it.
struct StepLimits {
  int32_t max_batch_tokens = 0;     // tokens of all chunks together
  int32_t max_batch_sequences = 0;  // chunks, and sampler slots
  int32_t max_model_len = 0;        // longest context, tokens
};

// Bytes held, by purpose.
struct MemoryUse {
  int64_t weights_bytes = 0;
  int64_t kv_cache_bytes = 0;
  int64_t workspace_bytes = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;

  // For people: "cpu, 2 threads, AVX-512".
  virtual std::string description() const = 0;

  // Copies (and converts or fuses) the weights; the views need not outlive the call. The loader has
  // checked their shapes. RESOURCE_EXHAUSTED names needed and available bytes.
  virtual absl::Status LoadWeights(const ModelWeights& weights) = 0;

  // Random weights of the model's shape, scaled so that activations stay finite; norms are 1.
  virtual absl::Status FillRandomWeights(uint64_t seed) = 0;

  // Memory that a KV cache could take now, after weights and workspaces.
  virtual int64_t AvailableMemoryBytes() const = 0;

  // Bytes of K and V of all layers for one block of kBlockSize tokens.
  virtual int64_t kv_block_size_bytes() const = 0;

  // Allocates blocks 0..num_blocks - 1. Called once. RESOURCE_EXHAUSTED as above.
  virtual absl::Status AllocateKvCache(int32_t num_blocks) = 0;

  virtual MemoryUse memory_use() const = 0;

  // Sets slot `slot` to a sequence's parameters and history, replacing what it held. The history is
  // what penalties, min_new_tokens and the noise's index count from; Sample appends to it.
  virtual absl::Status BindSampler(int32_t slot, const SamplingParams& params,
                                   absl::Span<const int32_t> prompt_token_ids,
                                   absl::Span<const int32_t> generated_token_ids) = 0;

  // UNIMPLEMENTED where the backend does not compute the mode or the scope of its selection. Any
  // thread.
  virtual absl::Status CheckAttention(AttentionMode mode, const Selection& selection) const;

  // --- The stages of a step ---

  // Takes over the batch's tables. The batch is within StepLimits and has at least one token.
  virtual absl::Status BeginStep(const StepBatch& batch) = 0;

  // Token ids -> hidden states [num_tokens, hidden].
  virtual absl::Status Embed() = 0;

  // RMSNorm, QKV projection, RoPE; writes K and V into the cache. Leaves q [num_tokens,
  // query_size].
  virtual absl::Status AttentionInput(int32_t layer) = 0;

  // q and the cache -> attention output [num_tokens, query_size]; for kSelect also the selection.
  virtual absl::Status Attention(int32_t layer, const AttentionPass& pass) = 0;

  // Output projection, added to the hidden states.
  virtual absl::Status AttentionOutput(int32_t layer) = 0;

  // RMSNorm, gate and up projections, SiLU(gate) * up, down projection, added to the hidden states.
  virtual absl::Status Mlp(int32_t layer) = 0;

  // For each chunk with `samples`: final RMSNorm of its last token, LM head, and a draw
  // (sampling.h).
  virtual absl::Status Sample() = 0;

  // Waits for the oldest step begun and not yet ended; *sampled becomes one entry for each chunk
  // with `samples`, in the batch's order.
  virtual absl::Status EndStep(std::vector<SampledToken>* sampled) = 0;

  // How many steps may be begun before the first is ended: 1, or 2 where the host can run ahead.
  virtual int32_t max_steps_in_flight() const { return 1; }

  // --- For tests and tools ---

  // The last ended step's logits before sampling, [number of chunks with `samples`, vocab].
  virtual absl::Status ReadLogits(std::vector<float>* logits) = 0;

  // The positions that chunk `chunk_index` of the last step attends under kSparse, ascending:
  // [sets][token_budget], where sets is the number of query heads, KV heads, or 1, by the scope.
  // Of a chunk whose last layer ran kQuest, those that it attended, a set for each query head.
  virtual absl::Status ReadSelection(int32_t chunk_index,
                                     std::vector<std::vector<int32_t>>* positions) = 0;

  // Between Attention(layer) and AttentionOutput(layer): the softmax over the whole context of the
  // last query of chunk `chunk_index`, [num_query_heads][num_context_tokens]. UNIMPLEMENTED where a
  // backend's stages run later than their calls.
  virtual absl::Status ReadAttentionProbabilities(
      int32_t /*layer*/, int32_t /*chunk_index*/,
      std::vector<std::vector<float>>* /*probabilities*/) {
    return absl::UnimplementedError("this backend does not tell attention probabilities");
  }

  // Bytes a second that the device reads memory with at best, measured now over more than its
  // caches hold: the ceiling for decoding. After AllocateKvCache.
  virtual absl::StatusOr<double> MeasureReadBandwidth() = 0;
};

}  // namespace tidal
