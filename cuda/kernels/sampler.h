// Draws tokens on the device, to the letter of engine/backend/sampling.h, and keeps each slot's
// parameters and history there, so that the next step can be enqueued before the host has read
// the token. Which of the options a row uses is read on the device: rows of all kinds mix in a
// launch, and a launch in a graph stays valid whatever is bound later.
//
// Bound: the logits are read once, vocab_size * 4 bytes, so a row is a matter of latency. How the
// work is cut:
//  - A team of blocks (a cluster on sm_90, one block before) takes a row, each block a slice of the
//    vocabulary. Plain greedy rows, and rows with a temperature alone, take one pass over the
//    logits; the blocks' best tokens meet in shared memory.
//  - Rows with a bias or penalties write their adjusted logits to a workspace first.
//  - top_k and top_p look for a threshold instead of sorting. Tokens are ordered by a 50-bit rank
//    (the logit's bits, then the lower id), so no two are equal. A histogram over the distance to
//    the highest logit, then over ever lower digits of the rank, narrows the threshold down until
//    few tokens are left, which are compared with each other.
//  - Probabilities are summed as fixed-point integers. Their sums do not depend on the order of
//    additions, so a row's token depends on nothing but its logits and its slot.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>
#include <vector>

#include "cuda/kernels/step_view.h"
#include "engine/backend/sampling.h"

namespace tidal::cuda {

// The largest vocabulary: a token id takes 18 bits of a rank.
inline constexpr int32_t kMaxSamplerVocabSize = 1 << 18;

// The longest lists that a slot holds: the server's kMaxLogitBiasEntries, and its kMaxStopTokenIds
// with as many end-of-sequence tokens again.
inline constexpr int32_t kMaxSlotLogitBiases = 1024;
inline constexpr int32_t kMaxSlotSuppressedTokens = 512;

// One slot in device memory. Bind writes all of it, a draw the last two members.
struct SamplerSlot {
  uint64_t seed;
  float temperature;
  float top_p;
  float min_p;
  float repetition_penalty;
  float presence_penalty;
  float frequency_penalty;
  int32_t top_k;
  int32_t min_new_tokens;
  int32_t num_logit_biases;
  int32_t num_suppressed_tokens;
  int32_t num_top_logprobs;
  bool return_logprobs;
  bool penalised;                               // its row of token_counts is kept
  LogitBias logit_biases[kMaxSlotLogitBiases];  // by ascending token id
  int32_t suppressed_token_ids[kMaxSlotSuppressedTokens];
  int32_t last_token;  // drawn, or generated last when bound; kLastSampledToken where none was
  int64_t num_generated_tokens;
};

// What a draw tells the host. Members that the slot did not ask for are left as they were.
struct SampleRecord {
  int32_t token_id;
  float logprob;                           // with return_logprobs, as the two below
  int32_t top_token_ids[kMaxTopLogprobs];  // [num_top_logprobs], most probable first
  float top_logprobs[kMaxTopLogprobs];
};

// The slots and the workspace of all draws on one device, allocated once. Engine thread only.
class DeviceSampler {
 public:
  struct Limits {
    int32_t num_slots = 0;   // also the most rows of a launch
    int32_t vocab_size = 0;  // 1..kMaxSamplerVocabSize
    // Of a Bind's prompt and output that are sent at once; longer ones go in several pieces. > 0.
    int32_t max_history_tokens = 0;
  };

  DeviceSampler() = default;
  ~DeviceSampler();
  DeviceSampler(const DeviceSampler&) = delete;
  DeviceSampler& operator=(const DeviceSampler&) = delete;

  // Device memory that Allocate takes for these limits.
  static int64_t DeviceBytes(const Limits& limits);

  // Takes the memory on the current device. Once, before all else; not while a graph is captured.
  cudaError_t Allocate(const Limits& limits);

  // Backend::BindSampler, enqueued on `stream`; the arguments need not outlive the call. May wait
  // until an earlier Bind's copies are done; not while a graph is captured. cudaErrorInvalidValue
  // where the slot, a token id, num_top_logprobs or the length of a list is out of range; the slot
  // then keeps what it held.
  cudaError_t Bind(int32_t slot, const SamplingParams& params,
                   std::span<const int32_t> prompt_token_ids,
                   std::span<const int32_t> generated_token_ids, cudaStream_t stream);

  struct Draw {
    StepView step;
    const float* logits;    // [num_rows][vocab_size], aligned to 16 bytes; kept as they are
    SampleRecord* records;  // out: [num_rows]
    // The bucket of the graph, 1..num_slots. Rows from counts->num_samples on are not drawn.
    int32_t num_rows = 0;
    // Programmatic dependent launch: the kernel may start before the one in front of it ends, and
    // waits for that one's end before it reads anything.
    bool dependent = false;
  };
  // Draws a token for row i of the logits, which belongs to chunk step.sampling_chunks[i].
  cudaError_t LaunchDraw(const Draw& draw, cudaStream_t stream) const;

  // [num_slots] in device memory, for the kernels that read last_token.
  const SamplerSlot* slots() const { return slots_; }

 private:
  // Counts the history of a slot with penalties into its row of token_counts.
  cudaError_t BindHistory(int32_t slot, std::span<const int32_t> prompt_token_ids,
                          std::span<const int32_t> generated_token_ids, cudaStream_t stream);
  // A piece of it, at most max_history_tokens.
  cudaError_t CountHistory(std::span<const int32_t> token_ids, bool in_prompt, uint32_t* counts,
                           cudaStream_t stream);

  Limits limits_;
  int32_t team_size_ = 1;                  // blocks a row
  SamplerSlot* slots_ = nullptr;           // [num_slots]
  uint32_t* token_counts_ = nullptr;       // [num_slots][vocab_size], see kInPrompt in sampler.cu
  float* adjusted_ = nullptr;              // [num_slots][vocab_size], rows of a launch
  int32_t* history_ = nullptr;             // [max_history_tokens] of the Bind under way
  SamplerSlot* staged_slots_ = nullptr;    // [num_slots] in pinned memory
  int32_t* staged_history_ = nullptr;      // [max_history_tokens] in pinned memory
  std::vector<cudaEvent_t> slots_copied_;  // [num_slots] since when staged_slots_ are free
  cudaEvent_t history_copied_ = nullptr;   // since when staged_history_ is free
};

}  // namespace tidal::cuda
