#include "cuda/kernels/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>

#include "cuda/kernels/ptx.cuh"
#include "cuda/kernels/sampler_team.cuh"
#include "engine/backend/philox.h"
#include "engine/backend/step_batch.h"

namespace tidal::cuda {
namespace {

using sampling::kMaxTeamSize;
using sampling::kNumThreads;
using sampling::RowTeam;
using sampling::Shared;
using sampling::Slice;

// A word of token_counts: occurrences in the output, and whether the token is in the prompt.
constexpr uint32_t kInPrompt = 0x80000000u;
constexpr uint32_t kCountMask = kInPrompt - 1;

// Tokens of a vocabulary that are worth a block of their own.
constexpr int32_t kTokensPerBlock = 4096;

struct DrawArguments {
  StepView step;
  const float* logits;
  SampleRecord* records;
  SamplerSlot* slots;
  uint32_t* token_counts;
  float* adjusted;
  int32_t vocab_size;
};

__device__ Slice SliceOfBlock(const float* row, int32_t vocab_size) {
  const int32_t num_groups = (vocab_size + sampling::kGroupTokens - 1) / sampling::kGroupTokens;
  const auto boundary = [&](int32_t rank) {
    const int64_t groups = int64_t{num_groups} * rank / ClusterSize();
    return min(static_cast<int32_t>(groups) * sampling::kGroupTokens, vocab_size);
  };
  const bool is_aligned = vocab_size % sampling::kGroupTokens == 0 &&
                          reinterpret_cast<uintptr_t>(row) % sizeof(float4) == 0;
  return {boundary(ClusterRank()), boundary(ClusterRank() + 1), is_aligned};
}

// The slot's options that change logits before temperature (steps 1 to 4 of sampling.h).
__device__ bool Suppresses(const SamplerSlot& slot) {
  return slot.num_suppressed_tokens > 0 && slot.num_generated_tokens < slot.min_new_tokens;
}

__device__ float Penalise(const SamplerSlot& slot, uint32_t count_word, float logit) {
  if (count_word == 0) return logit;
  logit = logit > 0.0f ? __fdiv_rn(logit, slot.repetition_penalty)
                       : __fmul_rn(logit, slot.repetition_penalty);
  const uint32_t count = count_word & kCountMask;
  if (count > 0) {
    logit = __fsub_rn(logit, slot.presence_penalty);
    logit = __fsub_rn(logit, __fmul_rn(slot.frequency_penalty, static_cast<float>(count)));
  }
  return logit;
}

// Steps 1 to 4 of sampling.h, and the division by `temperature` where it is not 0, into the row's
// workspace. By the whole block, for its slice.
__device__ void AdjustSlice(const SamplerSlot& slot, const uint32_t* counts, const float* row,
                            const Slice& slice, float temperature, float* adjusted) {
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  for (int32_t id = slice.begin + thread; id < slice.end; id += kNumThreads) {
    adjusted[id] = row[id];
  }
  __syncthreads();
  for (int32_t i = thread; i < slot.num_logit_biases; i += kNumThreads) {
    const LogitBias entry = slot.logit_biases[i];
    if (entry.token_id < slice.begin || entry.token_id >= slice.end) continue;
    adjusted[entry.token_id] = __fadd_rn(adjusted[entry.token_id], entry.bias);
  }
  __syncthreads();
  if (slot.penalised) {
    for (int32_t id = slice.begin + thread; id < slice.end; id += kNumThreads) {
      adjusted[id] = Penalise(slot, counts[id], adjusted[id]);
    }
    __syncthreads();
  }
  if (Suppresses(slot)) {
    for (int32_t i = thread; i < slot.num_suppressed_tokens; i += kNumThreads) {
      const int32_t id = slot.suppressed_token_ids[i];
      if (id >= slice.begin && id < slice.end) adjusted[id] = -INFINITY;
    }
    __syncthreads();
  }
  if (temperature == 0.0f) return;
  for (int32_t id = slice.begin + thread; id < slice.end; id += kNumThreads) {
    adjusted[id] = __fdiv_rn(adjusted[id], temperature);
  }
  __syncthreads();
}

// The highest rank of the team's tokens, valid in all threads.
__device__ uint64_t HighestRank(RowTeam* team, const float* row, const Slice& slice) {
  uint64_t best = 0;
  sampling::VisitSlice(
      row, slice, [&](int32_t id, float logit) { best = max(best, sampling::RankOf(logit, id)); });
  return team->Reduce(best, sampling::Max{});
}

// What is left of the row after top_k, top_p and min_p (step 6 of sampling.h).
struct Kept {
  uint64_t floor = 0;  // rank
  float max = 0.0f;
  float min_p = 0.0f;

  __device__ bool Holds(float logit, int32_t id) const {
    if (floor > 0 && sampling::RankOf(logit, id) < floor) return false;
    return min_p == 0.0f || expf(logit - max) >= min_p;
  }
};

__device__ Kept Filter(const SamplerSlot& slot, RowTeam* team, const float* row, const Slice& slice,
                       int32_t vocab_size) {
  Kept kept;
  kept.max = sampling::LogitOf(HighestRank(team, row, slice));
  kept.min_p = slot.min_p;
  if (slot.top_k > 0 && slot.top_k < vocab_size) {
    kept.floor = team->FindThreshold(row, slice, kept.max, 0, /*by_mass=*/false,
                                     static_cast<uint64_t>(slot.top_k));
  }
  if (slot.top_p < 1.0f) {
    uint64_t mass = 0;
    sampling::VisitSlice(row, slice, [&](int32_t id, float logit) {
      if (sampling::RankOf(logit, id) >= kept.floor) mass += sampling::MassOf(logit, kept.max);
    });
    mass = team->Reduce(mass, sampling::Sum{});
    const double wanted = ceil(static_cast<double>(slot.top_p) * static_cast<double>(mass));
    kept.floor = team->FindThreshold(row, slice, kept.max, kept.floor, /*by_mass=*/true,
                                     max(static_cast<uint64_t>(wanted), uint64_t{1}));
  }
  return kept;
}

// Steps 1 to 7 of sampling.h. Valid in all threads.
__device__ int32_t DrawToken(const SamplerSlot& slot, const uint32_t* counts, RowTeam* team,
                             const float* row, const Slice& slice, int32_t vocab_size,
                             float* adjusted) {
  const bool filters = slot.temperature > 0.0f && ((slot.top_k > 0 && slot.top_k < vocab_size) ||
                                                   slot.top_p < 1.0f || slot.min_p > 0.0f);
  float temperature = slot.temperature;
  if (filters || slot.num_logit_biases > 0 || slot.penalised || Suppresses(slot)) {
    AdjustSlice(slot, counts, row, slice, temperature, adjusted);
    row = adjusted;
    temperature = 1.0f;  // has been divided by
  }
  if (slot.temperature == 0.0f) return sampling::IdOf(HighestRank(team, row, slice));
  Kept kept;
  if (filters) kept = Filter(slot, team, row, slice, vocab_size);
  const auto index = static_cast<uint64_t>(slot.num_generated_tokens);
  uint64_t best = 0;
  sampling::VisitSlice(row, slice, [&](int32_t id, float logit) {
    if (temperature != 1.0f) logit = __fdiv_rn(logit, temperature);
    if (filters && !kept.Holds(logit, id)) return;
    const float noise = GumbelNoise(slot.seed, index, static_cast<uint32_t>(id));
    best = max(best, sampling::RankOf(__fadd_rn(logit, noise), id));
  });
  return sampling::IdOf(team->Reduce(best, sampling::Max{}));
}

// Log-softmax of the row before any change, for the drawn token and the most probable ones.
__device__ void RecordLogprobs(const SamplerSlot& slot, RowTeam* team, Shared* shared,
                               const float* row, const Slice& slice, int32_t token_id,
                               SampleRecord* record) {
  const float max = sampling::LogitOf(HighestRank(team, row, slice));
  double sum = 0.0;
  sampling::VisitSlice(
      row, slice, [&](int32_t, float logit) { sum += static_cast<double>(expf(logit - max)); });
  const float log_sum = static_cast<float>(log(team->ReduceSum(sum)));
  if (team->is_leader() && threadIdx.x == 0) record->logprob = row[token_id] - max - log_sum;
  if (slot.num_top_logprobs == 0) return;
  const auto num_top = static_cast<uint32_t>(slot.num_top_logprobs);
  const uint64_t floor = team->FindThreshold(row, slice, max, 0, /*by_mass=*/false, num_top);
  team->Collect(row, slice, floor);
  const uint32_t own = threadIdx.x;
  if (!team->is_leader() || own >= num_top) return;
  const uint64_t rank = shared->candidates[own];
  uint32_t place = 0;
  for (uint32_t other = 0; other < num_top; ++other) {
    place += shared->candidates[other] > rank ? 1 : 0;
  }
  record->top_token_ids[place] = sampling::IdOf(rank);
  record->top_logprobs[place] = sampling::LogitOf(rank) - max - log_sum;
}

__global__ void __launch_bounds__(kNumThreads)
    DrawKernel(const __grid_constant__ DrawArguments draw) {
  LetNextKernelStart();
  WaitForPreviousKernels();
  auto* const shared = reinterpret_cast<Shared*>(DynamicSharedMemory());
  const int32_t sample = static_cast<int32_t>(blockIdx.x) / ClusterSize();
  if (sample >= draw.step.counts->num_samples) return;  // the whole team
  const DeviceChunk& chunk = draw.step.chunks[draw.step.sampling_chunks[sample]];
  SamplerSlot* const slot = draw.slots + chunk.sampler_slot;
  const int64_t vocab_size = draw.vocab_size;
  uint32_t* const counts = draw.token_counts + chunk.sampler_slot * vocab_size;
  const float* const row = draw.logits + sample * vocab_size;
  const Slice slice = SliceOfBlock(row, draw.vocab_size);
  RowTeam team(shared);
  const int32_t token_id = DrawToken(*slot, counts, &team, row, slice, draw.vocab_size,
                                     draw.adjusted + sample * vocab_size);
  SampleRecord* const record = draw.records + sample;
  if (slot->return_logprobs) {
    RecordLogprobs(*slot, &team, shared, row, slice, token_id, record);
  }
  // Until all have read the slot, and what is in each other's shared memory.
  ClusterSync();
  if (!team.is_leader() || threadIdx.x != 0) return;
  record->token_id = token_id;
  if (slot->penalised) ++counts[token_id];
  slot->last_token = token_id;
  ++slot->num_generated_tokens;
}

// Counts a piece of a history into a row of token_counts.
__global__ void __launch_bounds__(kNumThreads)
    CountHistoryKernel(const int32_t* token_ids, int32_t num_tokens, bool in_prompt,
                       uint32_t* counts) {
  const int32_t stride = static_cast<int32_t>(gridDim.x) * kNumThreads;
  for (int32_t i = static_cast<int32_t>(blockIdx.x * kNumThreads + threadIdx.x); i < num_tokens;
       i += stride) {
    if (in_prompt) {
      atomicOr(&counts[token_ids[i]], kInPrompt);
    } else {
      atomicAdd(&counts[token_ids[i]], 1u);
    }
  }
}

bool AreTokenIds(std::span<const int32_t> ids, int32_t vocab_size) {
  return std::all_of(ids.begin(), ids.end(),
                     [vocab_size](int32_t id) { return id >= 0 && id < vocab_size; });
}

bool IsPenalised(const SamplingParams& params) {
  return params.repetition_penalty != 1.0f || params.presence_penalty != 0.0f ||
         params.frequency_penalty != 0.0f;
}

// The biases by ascending token, those of one token added up.
std::map<int32_t, float> SumBiases(const SamplingParams& params) {
  std::map<int32_t, float> biases;
  for (const LogitBias& entry : params.logit_bias) biases[entry.token_id] += entry.bias;
  return biases;
}

template <typename Element>
cudaError_t AllocateDevice(int64_t size, Element** elements) {
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, static_cast<size_t>(size) * sizeof(Element));
  *elements = static_cast<Element*>(memory);
  return error;
}

template <typename Element>
cudaError_t AllocatePinned(int64_t size, Element** elements) {
  void* memory = nullptr;
  const cudaError_t error = cudaMallocHost(&memory, static_cast<size_t>(size) * sizeof(Element));
  *elements = static_cast<Element*>(memory);
  return error;
}

}  // namespace

DeviceSampler::~DeviceSampler() {
  for (void* memory : {static_cast<void*>(slots_), static_cast<void*>(token_counts_),
                       static_cast<void*>(adjusted_), static_cast<void*>(history_)}) {
    cudaFree(memory);
  }
  cudaFreeHost(staged_slots_);
  cudaFreeHost(staged_history_);
  for (cudaEvent_t event : slots_copied_) cudaEventDestroy(event);
  if (history_copied_ != nullptr) cudaEventDestroy(history_copied_);
}

int64_t DeviceSampler::DeviceBytes(const Limits& limits) {
  const int64_t num_slots = limits.num_slots;
  return num_slots * static_cast<int64_t>(sizeof(SamplerSlot)) +
         num_slots * limits.vocab_size *
             static_cast<int64_t>(sizeof(*token_counts_) + sizeof(*adjusted_)) +
         limits.max_history_tokens * static_cast<int64_t>(sizeof(*history_));
}

cudaError_t DeviceSampler::Allocate(const Limits& limits) {
  if (limits.num_slots < 1 || limits.vocab_size < 1 || limits.vocab_size > kMaxSamplerVocabSize ||
      limits.max_history_tokens < 1) {
    return cudaErrorInvalidValue;
  }
  limits_ = limits;
  int device = 0;
  int major = 0;
  for (cudaError_t error :
       {cudaGetDevice(&device),
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device)}) {
    if (error != cudaSuccess) return error;
  }
  constexpr int kMajorWithClusters = 9;
  team_size_ = 1;
  while (major >= kMajorWithClusters && team_size_ < kMaxTeamSize &&
         team_size_ * kTokensPerBlock < limits.vocab_size) {
    team_size_ *= 2;
  }
  const int64_t num_slots = limits.num_slots;
  const int64_t history_size = limits.max_history_tokens;
  for (cudaError_t error :
       {AllocateDevice(num_slots, &slots_),
        AllocateDevice(num_slots * limits.vocab_size, &token_counts_),
        AllocateDevice(num_slots * limits.vocab_size, &adjusted_),
        AllocateDevice(history_size, &history_), AllocatePinned(num_slots, &staged_slots_),
        AllocatePinned(history_size, &staged_history_),
        cudaEventCreateWithFlags(&history_copied_, cudaEventDisableTiming)}) {
    if (error != cudaSuccess) return error;
  }
  for (int64_t slot = 0; slot < num_slots; ++slot) {
    cudaEvent_t event = nullptr;
    const cudaError_t error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    if (error != cudaSuccess) return error;
    slots_copied_.push_back(event);
  }
  return cudaSuccess;
}

cudaError_t DeviceSampler::Bind(int32_t slot, const SamplingParams& params,
                                std::span<const int32_t> prompt_token_ids,
                                std::span<const int32_t> generated_token_ids, cudaStream_t stream) {
  const std::map<int32_t, float> biases = SumBiases(params);
  const bool biases_fit =
      biases.empty() || (biases.begin()->first >= 0 && biases.rbegin()->first < limits_.vocab_size);
  if (slot < 0 || slot >= limits_.num_slots || !biases_fit ||
      biases.size() > static_cast<size_t>(kMaxSlotLogitBiases) ||
      params.suppressed_token_ids.size() > static_cast<size_t>(kMaxSlotSuppressedTokens) ||
      params.num_top_logprobs < 0 ||
      params.num_top_logprobs > std::min(kMaxTopLogprobs, limits_.vocab_size) ||
      !AreTokenIds(params.suppressed_token_ids, limits_.vocab_size) ||
      !AreTokenIds(prompt_token_ids, limits_.vocab_size) ||
      !AreTokenIds(generated_token_ids, limits_.vocab_size)) {
    return cudaErrorInvalidValue;
  }
  cudaEvent_t const slot_copied = slots_copied_[static_cast<size_t>(slot)];
  if (cudaError_t error = cudaEventSynchronize(slot_copied); error != cudaSuccess) return error;
  SamplerSlot& staged = staged_slots_[slot];
  staged.seed = params.seed;
  staged.temperature = params.temperature;
  staged.top_p = params.top_p;
  staged.min_p = params.min_p;
  staged.repetition_penalty = params.repetition_penalty;
  staged.presence_penalty = params.presence_penalty;
  staged.frequency_penalty = params.frequency_penalty;
  staged.top_k = params.top_k;
  staged.min_new_tokens = params.min_new_tokens;
  staged.num_logit_biases = 0;
  for (const auto& [token_id, bias] : biases) {
    staged.logit_biases[staged.num_logit_biases++] = {token_id, bias};
  }
  staged.num_suppressed_tokens = static_cast<int32_t>(params.suppressed_token_ids.size());
  std::copy(params.suppressed_token_ids.begin(), params.suppressed_token_ids.end(),
            staged.suppressed_token_ids);
  staged.num_top_logprobs = params.num_top_logprobs;
  staged.return_logprobs = params.return_logprobs;
  staged.penalised = IsPenalised(params);
  staged.last_token = generated_token_ids.empty() ? kLastSampledToken : generated_token_ids.back();
  staged.num_generated_tokens = static_cast<int64_t>(generated_token_ids.size());
  for (cudaError_t error :
       {cudaMemcpyAsync(slots_ + slot, &staged, sizeof(staged), cudaMemcpyHostToDevice, stream),
        cudaEventRecord(slot_copied, stream)}) {
    if (error != cudaSuccess) return error;
  }
  return staged.penalised ? BindHistory(slot, prompt_token_ids, generated_token_ids, stream)
                          : cudaSuccess;
}

cudaError_t DeviceSampler::BindHistory(int32_t slot, std::span<const int32_t> prompt_token_ids,
                                       std::span<const int32_t> generated_token_ids,
                                       cudaStream_t stream) {
  uint32_t* const counts = token_counts_ + int64_t{slot} * limits_.vocab_size;
  const cudaError_t cleared =
      cudaMemsetAsync(counts, 0, static_cast<size_t>(limits_.vocab_size) * sizeof(*counts), stream);
  if (cleared != cudaSuccess) return cleared;
  for (const bool in_prompt : {true, false}) {
    std::span<const int32_t> rest = in_prompt ? prompt_token_ids : generated_token_ids;
    while (!rest.empty()) {
      const size_t size = std::min(rest.size(), static_cast<size_t>(limits_.max_history_tokens));
      const cudaError_t error = CountHistory(rest.first(size), in_prompt, counts, stream);
      if (error != cudaSuccess) return error;
      rest = rest.subspan(size);
    }
  }
  return cudaSuccess;
}

cudaError_t DeviceSampler::CountHistory(std::span<const int32_t> token_ids, bool in_prompt,
                                        uint32_t* counts, cudaStream_t stream) {
  if (cudaError_t error = cudaEventSynchronize(history_copied_); error != cudaSuccess) return error;
  std::copy(token_ids.begin(), token_ids.end(), staged_history_);
  constexpr size_t kMaxBlocks = 64;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<uint32_t>(
      std::min<size_t>(kMaxBlocks, (token_ids.size() + kNumThreads - 1) / kNumThreads)));
  config.blockDim = dim3(kNumThreads);
  config.stream = stream;
  for (cudaError_t error :
       {cudaMemcpyAsync(history_, staged_history_, token_ids.size_bytes(), cudaMemcpyHostToDevice,
                        stream),
        cudaEventRecord(history_copied_, stream),
        cudaLaunchKernelEx(&config, CountHistoryKernel, static_cast<const int32_t*>(history_),
                           static_cast<int32_t>(token_ids.size()), in_prompt, counts)}) {
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t DeviceSampler::LaunchDraw(const Draw& draw, cudaStream_t stream) const {
  if (draw.num_rows < 1 || draw.num_rows > limits_.num_slots) return cudaErrorInvalidValue;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = static_cast<uint32_t>(team_size_);
  attributes[0].val.clusterDim.y = 1;
  attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<uint32_t>(draw.num_rows * team_size_));
  config.blockDim = dim3(kNumThreads);
  config.dynamicSmemBytes = sizeof(Shared);
  config.stream = stream;
  // A team of one is launched without a cluster, which devices before sm_90 do not know.
  config.attrs = team_size_ > 1 ? attributes : attributes + 1;
  config.numAttrs = (team_size_ > 1 ? 1u : 0u) + (draw.dependent ? 1u : 0u);
  const DrawArguments arguments = {.step = draw.step,
                                   .logits = draw.logits,
                                   .records = draw.records,
                                   .slots = slots_,
                                   .token_counts = token_counts_,
                                   .adjusted = adjusted_,
                                   .vocab_size = limits_.vocab_size};
  return cudaLaunchKernelEx(&config, DrawKernel, arguments);
}

}  // namespace tidal::cuda
