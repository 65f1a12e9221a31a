#include "cuda/cuda_backend.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <array>
#include <deque>
#include <map>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cuda/device.h"
#include "cuda/kernels/decode_attention.h"
#include "cuda/kernels/elementwise.h"
#include "cuda/kernels/prefill_attention.h"
#include "cuda/kernels/read_bandwidth.h"
#include "cuda/kernels/sampler.h"
#include "cuda/kernels/skinny_linear.h"
#include "cuda/matmul.h"
#include "cuda/status.h"
#include "cuda/step_program.h"
#include "cuda/step_tables.h"
#include "cuda/weights.h"
#include "engine/backend/checks.h"
#include "engine/backend/status_macros.h"

namespace tidal {
namespace cuda {
namespace {

constexpr int32_t kMaxStepsInFlight = 2;

// What the device needs beside what the backend allocates: graphs, modules, cuBLAS's own.
constexpr int64_t kReserveBytes = int64_t{512} << 20;

ModelDims DimsOf(const ModelShape& shape) {
  return {.num_layers = shape.num_layers,
          .hidden_size = shape.hidden_size,
          .intermediate_size = shape.intermediate_size,
          .num_query_heads = shape.num_query_heads,
          .num_kv_heads = shape.num_kv_heads,
          .head_dim = shape.head_dim,
          .vocab_size = shape.vocab_size,
          .rms_norm_eps = shape.rms_norm_eps};
}

template <typename T>
class CudaBackend final : public Backend {
 public:
  CudaBackend(const ModelShape& shape, const StepLimits& limits, DeviceInfo device,
              int64_t limit_bytes)
      : shape_(shape),
        dims_(DimsOf(shape)),
        limits_(limits),
        device_(std::move(device)),
        limit_bytes_(limit_bytes),
        weights_(shape),
        tables_(limits, shape.group_size()),
        slot_outputs_(static_cast<size_t>(limits.max_batch_sequences)) {}
  ~CudaBackend() override;

  // Streams, workspaces and what else a step needs, all but weights and KV cache.
  absl::Status Init();

  std::string description() const override;
  absl::Status LoadWeights(const ModelWeights& weights) override;
  absl::Status FillRandomWeights(uint64_t seed) override;
  int64_t AvailableMemoryBytes() const override;
  int64_t kv_block_size_bytes() const override;
  absl::Status AllocateKvCache(int32_t num_blocks) override;
  MemoryUse memory_use() const override;
  absl::Status BindSampler(int32_t slot, const SamplingParams& params,
                           absl::Span<const int32_t> prompt_token_ids,
                           absl::Span<const int32_t> generated_token_ids) override;

  absl::Status BeginStep(const StepBatch& batch) override;
  absl::Status Embed() override { return Add({.kind = Stage::Kind::kEmbed}); }
  absl::Status AttentionInput(int32_t layer) override {
    return Add({.kind = Stage::Kind::kAttentionInput, .layer = layer});
  }
  absl::Status Attention(int32_t layer, const AttentionPass& pass) override {
    return Add({.kind = Stage::Kind::kAttention, .layer = layer, .pass = pass});
  }
  absl::Status AttentionOutput(int32_t layer) override {
    return Add({.kind = Stage::Kind::kAttentionOutput, .layer = layer});
  }
  absl::Status Mlp(int32_t layer) override {
    return Add({.kind = Stage::Kind::kMlp, .layer = layer});
  }
  absl::Status Sample() override;
  absl::Status EndStep(std::vector<SampledToken>* sampled) override;
  int32_t max_steps_in_flight() const override { return kMaxStepsInFlight; }

  absl::Status ReadLogits(std::vector<float>* logits) override;
  absl::Status ReadSelection(int32_t chunk_index,
                             std::vector<std::vector<int32_t>>* positions) override;
  absl::StatusOr<double> MeasureReadBandwidth() override;

 private:
  // Activations; rows are a step's tokens, or a graph's bucket.
  struct Activations {
    float* hidden = nullptr;          // [max_batch_tokens, hidden], the residual stream
    T* normed = nullptr;              // [max_batch_tokens, hidden]
    T* qkv = nullptr;                 // [max_batch_tokens, query_size + 2 * kv_size]
    T* query = nullptr;               // [max_batch_tokens, query_size]
    T* attention = nullptr;           // [max_batch_tokens, query_size]
    T* gate_up = nullptr;             // [max_batch_tokens, 2 * intermediate]
    T* activated = nullptr;           // [max_batch_tokens, intermediate]
    float* logits = nullptr;          // [max_batch_sequences, vocab]
    SampleRecord* records = nullptr;  // [max_batch_sequences]
    // [4 * num_layers + 1, 2]: of each product of a step, skinny_linear.h's.
    uint32_t* product_counters = nullptr;
  };

  // What of a draw the host asked for, by slot.
  struct SlotOutput {
    bool has_token = false;  // the slot has a last token
    bool return_logprobs = false;
    int32_t num_top_logprobs = 0;
  };

  // A step from BeginStep to EndStep.
  struct Step {
    size_t ring_index = 0;  // of records_ and step_ended_
    std::vector<SlotOutput> samples;
  };

  // A run of decode chunks whose scores fit the workspace together.
  struct ChunkRange {
    int32_t first = 0;
    int32_t count = 0;
  };

  void LayOut(DeviceArena* arena);
  int64_t RemainingBytes() const;
  int64_t ScoreBytesOfABlock() const;
  DecodeAttentionLimits AttentionLimits(int64_t max_score_tokens) const;
  KvCacheView<T> LayerCache(int32_t layer) const;

  // Whether the step is launched as a graph, and what that depends on.
  void Classify(const StepBatch& batch);
  std::vector<ChunkRange> SplitByScores(const StepBatch& batch) const;

  // Notes the stage, or runs it at once where the step has no graph.
  absl::Status Add(const Stage& stage);
  // Runs what is noted.
  absl::Status Flush();
  absl::Status Run(const Stage& stage, bool is_first);
  absl::Status RunAttentionInput(int32_t layer);
  absl::Status RunAttention(int32_t layer, const AttentionPass& pass);
  absl::Status RunAttentionOutput(int32_t layer);
  absl::Status RunMlp(int32_t layer);
  absl::Status RunSample();

  // y += x W^T + bias.
  absl::Status AddProduct(const T* x, int32_t inputs, const T* weight, const float* bias);

  ElementwiseLaunch elementwise() const { return {stream_.get(), num_rows_, is_dependent_}; }
  // Products of a step, in its order.
  enum class StepProduct : uint8_t { kAttentionInput, kAttentionOutput, kGateUp, kDown };
  static constexpr int kNumLayerProducts = 4;

  SkinnyLaunch skinny(int32_t layer, StepProduct product) const {
    return skinny(layer * kNumLayerProducts + static_cast<int32_t>(product));
  }
  SkinnyLaunch skinny(int32_t index) const {
    return {.device = skinny_,
            .stream = stream_.get(),
            .num_rows = num_rows_,
            .dependent = is_dependent_,
            .counters = act_.product_counters + 2 * index};
  }

  const ModelShape shape_;
  const ModelDims dims_;
  const StepLimits limits_;
  const DeviceInfo device_;
  const int64_t limit_bytes_;  // of device memory that may be held

  Stream stream_;
  DeviceWeights<T> weights_;
  DeviceArena kv_cache_arena_;
  T* kv_cache_ = nullptr;  // [layer][block][K, V][kv_head][kBlockSize][head_dim]
  int32_t num_blocks_ = 0;
  std::vector<CUtensorMap> cache_maps_;  // a layer's; empty before sm_90
  DeviceArena workspace_arena_;
  Activations act_;
  DeviceStepTables tables_;
  DeviceSampler sampler_;
  int64_t sampler_bytes_ = 0;
  std::unique_ptr<Matmul> matmul_;
  SkinnyLinearDevice skinny_;
  DecodeAttentionDevice decode_device_;
  PrefillAttentionDevice prefill_device_;
  DeviceArena attention_arena_;
  DecodeAttentionWorkspace attention_workspace_ = {};

  // Of the step being noted or run.
  StepProgram program_;
  StepTraits traits_;
  bool uses_graph_ = false;
  int32_t num_rows_ = 0;     // of launches: the step's, or its bucket
  int32_t num_chunks_ = 0;   // likewise
  int32_t num_samples_ = 0;  // likewise
  std::vector<ChunkRange> chunk_ranges_;
  bool is_dependent_ = false;
  // No layer has begun since the last selection: sparse attention may not start ahead of it.
  bool has_just_selected_ = false;
  std::vector<SequenceChunk> chunks_;  // of the step last begun, without their spans
  std::vector<SlotOutput> slot_outputs_;

  std::array<PinnedArray<SampleRecord>, kMaxStepsInFlight> records_;
  std::array<Event, kMaxStepsInFlight> step_ended_;
  size_t num_steps_ = 0;
  std::deque<Step> in_flight_;
  size_t num_logits_ = 0;  // rows of act_.logits that the last step has filled
  StepGraphs graphs_;
};

// --- Life ---

template <typename T>
CudaBackend<T>::~CudaBackend() {
  // Nothing that the device uses is freed before it has done with it.
  if (stream_.get() != nullptr) cudaStreamSynchronize(stream_.get());
}

template <typename T>
absl::Status CudaBackend<T>::Init() {
  TIDAL_RETURN_IF_ERROR(stream_.Create());
  TIDAL_RETURN_IF_CUDA_ERROR(InitSkinnyLinear(&skinny_));
  TIDAL_RETURN_IF_CUDA_ERROR(InitDecodeAttention(&decode_device_));
  TIDAL_RETURN_IF_CUDA_ERROR(InitPrefillAttention(&prefill_device_));
  constexpr DType kType = std::is_same_v<T, __half> ? DType::kFloat16 : DType::kBFloat16;
  TIDAL_ASSIGN_OR_RETURN(matmul_, CreateMatmul(kType));
  const DeviceSampler::Limits sampler_limits = {.num_slots = limits_.max_batch_sequences,
                                                .vocab_size = shape_.vocab_size,
                                                .max_history_tokens = limits_.max_model_len};
  sampler_bytes_ = DeviceSampler::DeviceBytes(sampler_limits);
  TIDAL_RETURN_IF_CUDA_ERROR(sampler_.Allocate(sampler_limits));
  DeviceArena count;
  LayOut(&count);
  TIDAL_ASSIGN_OR_RETURN(
      workspace_arena_,
      DeviceArena::Allocate(
          count.used_bytes(), RemainingBytes(),
          absl::StrCat("the workspaces for ", limits_.max_batch_tokens, " tokens and ",
                       limits_.max_batch_sequences, " sequences a step")));
  LayOut(&workspace_arena_);
  TIDAL_RETURN_IF_ERROR(tables_.Allocate());
  // Rows past a step's own are computed on whatever is there: finite numbers.
  TIDAL_RETURN_IF_CUDA_ERROR(cudaMemsetAsync(
      act_.hidden, 0, static_cast<size_t>(workspace_arena_.used_bytes()), stream_.get()));
  for (auto& records : records_) {
    TIDAL_RETURN_IF_ERROR(records.Allocate(limits_.max_batch_sequences));
  }
  for (Event& event : step_ended_) TIDAL_RETURN_IF_ERROR(event.Create());
  TIDAL_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream_.get()));
  return absl::OkStatus();
}

template <typename T>
void CudaBackend<T>::LayOut(DeviceArena* arena) {
  const int64_t rows = limits_.max_batch_tokens;
  const int64_t sequences = limits_.max_batch_sequences;
  act_.hidden = arena->Take<float>(rows * shape_.hidden_size);
  act_.normed = arena->Take<T>(rows * shape_.hidden_size);
  act_.qkv = arena->Take<T>(rows * dims_.qkv_size());
  act_.query = arena->Take<T>(rows * shape_.query_size());
  act_.attention = arena->Take<T>(rows * shape_.query_size());
  act_.gate_up = arena->Take<T>(rows * 2 * shape_.intermediate_size);
  act_.activated = arena->Take<T>(rows * shape_.intermediate_size);
  act_.logits = arena->Take<float>(sequences * shape_.vocab_size);
  act_.records = arena->Take<SampleRecord>(sequences);
  act_.product_counters = arena->Take<uint32_t>(2 * (kNumLayerProducts * shape_.num_layers + 1));
  tables_.LayOut(arena);
}

template <typename T>
std::string CudaBackend<T>::description() const {
  return absl::StrCat("cuda, ", device_.name, ", compute capability ", device_.major, ".",
                      device_.minor, ", ", std::is_same_v<T, __half> ? "float16" : "bfloat16");
}

template <typename T>
absl::Status CudaBackend<T>::LoadWeights(const ModelWeights& weights) {
  return weights_.Load(weights, RemainingBytes());
}

template <typename T>
absl::Status CudaBackend<T>::FillRandomWeights(uint64_t seed) {
  return weights_.FillRandom(seed, RemainingBytes());
}

// --- Memory ---

template <typename T>
MemoryUse CudaBackend<T>::memory_use() const {
  return {.weights_bytes = weights_.size_bytes(),
          .kv_cache_bytes = kv_cache_arena_.used_bytes(),
          .workspace_bytes = workspace_arena_.used_bytes() + attention_arena_.used_bytes() +
                             sampler_bytes_ + (matmul_ ? matmul_->workspace_bytes() : 0)};
}

template <typename T>
int64_t CudaBackend<T>::RemainingBytes() const {
  const MemoryUse use = memory_use();
  return limit_bytes_ - use.weights_bytes - use.kv_cache_bytes - use.workspace_bytes;
}

template <typename T>
int64_t CudaBackend<T>::kv_block_size_bytes() const {
  return int64_t{2} * shape_.num_layers * kBlockSize * shape_.kv_size() *
         static_cast<int64_t>(sizeof(T));
}

template <typename T>
DecodeAttentionLimits CudaBackend<T>::AttentionLimits(int64_t max_score_tokens) const {
  return {.max_batch_sequences = limits_.max_batch_sequences,
          .max_token_budget = std::min(kMaxTokenBudget, limits_.max_model_len),
          .max_score_tokens = max_score_tokens};
}

template <typename T>
int64_t CudaBackend<T>::ScoreBytesOfABlock() const {
  return int64_t{kBlockSize} * shape_.num_query_heads * static_cast<int64_t>(sizeof(float));
}

template <typename T>
int64_t CudaBackend<T>::AvailableMemoryBytes() const {
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  if (cudaMemGetInfo(&free_bytes, &total_bytes) != cudaSuccess) return 0;
  const int64_t fixed_bytes =
      DecodeAttentionWorkspaceBytes(decode_device_, dims_, AttentionLimits(kBlockSize));
  const int64_t available_bytes =
      std::min(RemainingBytes(), static_cast<int64_t>(free_bytes) - kReserveBytes) - fixed_bytes;
  // Each block of the cache comes with room for its tokens' scores.
  const double share = static_cast<double>(kv_block_size_bytes()) /
                       static_cast<double>(kv_block_size_bytes() + ScoreBytesOfABlock());
  return std::max<int64_t>(0, static_cast<int64_t>(share * static_cast<double>(available_bytes)));
}

template <typename T>
absl::Status CudaBackend<T>::AllocateKvCache(int32_t num_blocks) {
  if (num_blocks_ != 0) return absl::InvalidArgumentError("the KV cache is allocated already");
  // A row of the cache (block * kBlockSize + token) is an int32_t.
  TIDAL_RETURN_IF_ERROR(CheckRange("num_blocks", num_blocks, 1, (1 << 30) / kBlockSize));
  TIDAL_ASSIGN_OR_RETURN(
      kv_cache_arena_,
      DeviceArena::Allocate(num_blocks * kv_block_size_bytes(), RemainingBytes(),
                            absl::StrCat("a KV cache of ", num_blocks, " blocks")));
  kv_cache_ =
      kv_cache_arena_.Take<T>(num_blocks * kv_block_size_bytes() / static_cast<int64_t>(sizeof(T)));
  const int64_t most_in_a_step =
      int64_t{limits_.max_batch_sequences} * (limits_.max_model_len + kBlockSize);
  const DecodeAttentionLimits attention_limits =
      AttentionLimits(std::min(int64_t{num_blocks} * kBlockSize, most_in_a_step));
  const int64_t workspace_bytes =
      DecodeAttentionWorkspaceBytes(decode_device_, dims_, attention_limits);
  TIDAL_ASSIGN_OR_RETURN(attention_arena_,
                         DeviceArena::Allocate(workspace_bytes, RemainingBytes(),
                                               "the workspaces of decode attention"));
  void* const workspace = attention_arena_.Take<char>(workspace_bytes);
  attention_workspace_ =
      MakeDecodeAttentionWorkspace(workspace, decode_device_, dims_, attention_limits);
  TIDAL_RETURN_IF_CUDA_ERROR(
      cudaMemsetAsync(workspace, 0, static_cast<size_t>(workspace_bytes), stream_.get()));
  // Slots of a block behind a sequence's last token are read and masked: they must be finite.
  TIDAL_RETURN_IF_CUDA_ERROR(cudaMemsetAsync(
      kv_cache_, 0, static_cast<size_t>(kv_cache_arena_.used_bytes()), stream_.get()));
  num_blocks_ = num_blocks;
  if (prefill_device_.has_warpgroup_mma) {
    cache_maps_.resize(static_cast<size_t>(shape_.num_layers));
    for (int32_t layer = 0; layer < shape_.num_layers; ++layer) {
      TIDAL_RETURN_IF_CUDA_ERROR(MakePrefillCacheMap(LayerCache(layer), num_blocks,
                                                     &cache_maps_[static_cast<size_t>(layer)]));
    }
  }
  TIDAL_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream_.get()));
  return absl::OkStatus();
}

template <typename T>
KvCacheView<T> CudaBackend<T>::LayerCache(int32_t layer) const {
  const int64_t layer_size =
      num_blocks_ * kv_block_size_bytes() / static_cast<int64_t>(sizeof(T)) / shape_.num_layers;
  return {kv_cache_ + layer * layer_size, shape_.num_kv_heads, shape_.head_dim};
}

// --- A step ---

template <typename T>
absl::Status CudaBackend<T>::BindSampler(int32_t slot, const SamplingParams& params,
                                         absl::Span<const int32_t> prompt_token_ids,
                                         absl::Span<const int32_t> generated_token_ids) {
  TIDAL_RETURN_IF_ERROR(CheckBinding(slot, params, prompt_token_ids, generated_token_ids,
                                     limits_.max_batch_sequences, shape_.vocab_size));
  TIDAL_RETURN_IF_ERROR(CheckRange("number of logit_bias entries",
                                   static_cast<int64_t>(params.logit_bias.size()), 0,
                                   kMaxSlotLogitBiases));
  TIDAL_RETURN_IF_ERROR(CheckRange("number of suppressed_token_ids",
                                   static_cast<int64_t>(params.suppressed_token_ids.size()), 0,
                                   kMaxSlotSuppressedTokens));
  const auto span = [](absl::Span<const int32_t> ids) { return std::span(ids.data(), ids.size()); };
  TIDAL_RETURN_IF_CUDA_ERROR(sampler_.Bind(slot, params, span(prompt_token_ids),
                                           span(generated_token_ids), stream_.get()));
  tables_.ForgetSlot(slot);
  slot_outputs_[static_cast<size_t>(slot)] = {.has_token = !generated_token_ids.empty(),
                                              .return_logprobs = params.return_logprobs,
                                              .num_top_logprobs = params.num_top_logprobs};
  return absl::OkStatus();
}

template <typename T>
absl::Status CudaBackend<T>::BeginStep(const StepBatch& batch) {
  if (weights_.size_bytes() == 0) return absl::FailedPreconditionError("no weights are loaded");
  if (in_flight_.size() == kMaxStepsInFlight) {
    return absl::FailedPreconditionError("two steps are in flight already");
  }
  TIDAL_RETURN_IF_ERROR(CheckStep(batch, shape_, limits_, num_blocks_));
  for (const SequenceChunk& chunk : batch.chunks) {
    const bool reads_last = std::find(chunk.token_ids.begin(), chunk.token_ids.end(),
                                      kLastSampledToken) != chunk.token_ids.end();
    if (reads_last && !slot_outputs_[static_cast<size_t>(chunk.sampler_slot)].has_token) {
      return absl::FailedPreconditionError(
          absl::StrCat("sampler slot ", chunk.sampler_slot, " has drawn no token yet"));
    }
  }
  TIDAL_RETURN_IF_ERROR(tables_.Enqueue(batch, stream_.get()));
  Classify(batch);
  program_.clear();
  num_logits_ = 0;
  in_flight_.push_back({.ring_index = num_steps_++ % kMaxStepsInFlight, .samples = {}});
  return absl::OkStatus();
}

template <typename T>
void CudaBackend<T>::Classify(const StepBatch& batch) {
  traits_ = {};
  chunks_ = batch.chunks;
  bool all_sample = true;
  for (SequenceChunk& chunk : chunks_) {
    const bool is_decode = chunk.num_tokens() == 1;
    traits_.has_prefill = traits_.has_prefill || !is_decode;
    if (is_decode) traits_.AddDecode(chunk.mode, chunk.selection.scope);
    all_sample = all_sample && chunk.samples;
    chunk.token_ids = {};
    chunk.block_table = {};
  }
  chunk_ranges_ = SplitByScores(batch);
  const StepView::Counts& counts = tables_.counts();
  uses_graph_ = !traits_.has_prefill && all_sample && chunk_ranges_.size() == 1;
  num_rows_ = counts.num_rows;
  num_chunks_ = counts.num_chunks;
  num_samples_ = counts.num_samples;
  if (uses_graph_) {
    num_rows_ = RowBucket(counts.num_rows, limits_.max_batch_sequences);
    num_chunks_ = num_rows_;
    num_samples_ = num_rows_;
    chunk_ranges_ = {{.first = 0, .count = num_chunks_}};
  }
  traits_.num_rows = num_rows_;
}

template <typename T>
std::vector<typename CudaBackend<T>::ChunkRange> CudaBackend<T>::SplitByScores(
    const StepBatch& batch) const {
  std::vector<ChunkRange> ranges;
  int64_t num_score_tokens = 0;
  for (size_t i = 0; i < batch.chunks.size(); ++i) {
    const SequenceChunk& chunk = batch.chunks[i];
    const int64_t tokens =
        chunk.mode == AttentionMode::kTidal
            ? (int64_t{chunk.num_context_tokens} + kBlockSize - 1) / kBlockSize * kBlockSize
            : 0;
    if (ranges.empty() || num_score_tokens + tokens > attention_workspace_.max_score_tokens ||
        ranges.back().count == kMaxAttentionChunks) {
      ranges.push_back({.first = static_cast<int32_t>(i), .count = 0});
      num_score_tokens = 0;
    }
    ++ranges.back().count;
    num_score_tokens += tokens;
  }
  return ranges;
}

template <typename T>
absl::Status CudaBackend<T>::Add(const Stage& stage) {
  if (!uses_graph_) {
    const bool is_first = program_.empty();
    if (is_first) program_.push_back(stage);  // so that the next one is not the first
    return Run(stage, is_first);
  }
  program_.push_back(stage);
  return absl::OkStatus();
}

template <typename T>
absl::Status CudaBackend<T>::Flush() {
  if (!uses_graph_ || program_.empty()) return absl::OkStatus();
  const StepProgram program = std::exchange(program_, {});
  return graphs_.Launch({traits_, program}, stream_.get(), [&] {
    for (size_t i = 0; i < program.size(); ++i) {
      TIDAL_RETURN_IF_ERROR(Run(program[i], i == 0));
    }
    return absl::OkStatus();
  });
}

template <typename T>
absl::Status CudaBackend<T>::Sample() {
  TIDAL_RETURN_IF_ERROR(Add({.kind = Stage::Kind::kSample}));
  TIDAL_RETURN_IF_ERROR(Flush());
  Step& step = in_flight_.back();
  for (const SequenceChunk& chunk : chunks_) {
    if (!chunk.samples) continue;
    SlotOutput& output = slot_outputs_[static_cast<size_t>(chunk.sampler_slot)];
    output.has_token = true;
    step.samples.push_back(output);
  }
  num_logits_ = step.samples.size();
  if (step.samples.empty()) return absl::OkStatus();
  TIDAL_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(records_[step.ring_index].data(), act_.records,
                                             step.samples.size() * sizeof(SampleRecord),
                                             cudaMemcpyDeviceToHost, stream_.get()));
  TIDAL_RETURN_IF_CUDA_ERROR(cudaEventRecord(step_ended_[step.ring_index].get(), stream_.get()));
  return absl::OkStatus();
}

template <typename T>
absl::Status CudaBackend<T>::EndStep(std::vector<SampledToken>* sampled) {
  sampled->clear();
  if (in_flight_.empty()) return absl::FailedPreconditionError("no step has begun");
  // A step that was not sampled is launched now at the latest.
  TIDAL_RETURN_IF_ERROR(Flush());
  const Step step = std::move(in_flight_.front());
  in_flight_.pop_front();
  if (step.samples.empty()) {
    TIDAL_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream_.get()));
    return absl::OkStatus();
  }
  TIDAL_RETURN_IF_CUDA_ERROR(cudaEventSynchronize(step_ended_[step.ring_index].get()));
  const SampleRecord* record = records_[step.ring_index].data();
  for (const SlotOutput& output : step.samples) {
    SampledToken token = {.token_id = record->token_id};
    if (output.return_logprobs) {
      token.logprob = record->logprob;
      for (int32_t i = 0; i < output.num_top_logprobs; ++i) {
        token.top_logprobs.push_back({record->top_token_ids[i], record->top_logprobs[i]});
      }
    }
    sampled->push_back(std::move(token));
    ++record;
  }
  return absl::OkStatus();
}

// --- The stages' launches ---

template <typename T>
absl::Status CudaBackend<T>::Run(const Stage& stage, bool is_first) {
  // The first kernel of a graph has none in front of it to depend on.
  is_dependent_ = !is_first;
  switch (stage.kind) {
    case Stage::Kind::kEmbed:
      TIDAL_RETURN_IF_CUDA_ERROR(LaunchEmbed(elementwise(), dims_, tables_.view(), sampler_.slots(),
                                             weights_.embedding(), act_.hidden));
      return absl::OkStatus();
    case Stage::Kind::kAttentionInput:
      return RunAttentionInput(stage.layer);
    case Stage::Kind::kAttention:
      return RunAttention(stage.layer, stage.pass);
    case Stage::Kind::kAttentionOutput:
      return RunAttentionOutput(stage.layer);
    case Stage::Kind::kMlp:
      return RunMlp(stage.layer);
    case Stage::Kind::kSample:
      return RunSample();
  }
  return absl::InternalError("a stage of no kind");
}

template <typename T>
absl::Status CudaBackend<T>::RunAttentionInput(int32_t layer_index) {
  has_just_selected_ = false;
  const DeviceLayerWeights<T>& layer = weights_.layer(layer_index);
  const KvCacheView<T> cache = LayerCache(layer_index);
  if (SupportsAttentionInput(dims_, num_rows_)) {
    TIDAL_RETURN_IF_CUDA_ERROR(
        LaunchAttentionInput<T>(skinny(layer_index, StepProduct::kAttentionInput), dims_,
                                {.hidden = act_.hidden,
                                 .norm_weight = layer.attention_norm,
                                 .weight = layer.qkv,
                                 .bias = layer.qkv_bias,
                                 .inverse_frequencies = weights_.inverse_frequencies(),
                                 .query = act_.query,
                                 .cache = cache,
                                 .step = tables_.view()}));
    return absl::OkStatus();
  }
  TIDAL_RETURN_IF_CUDA_ERROR(
      LaunchRmsNorm(elementwise(), dims_, act_.hidden, layer.attention_norm, act_.normed));
  is_dependent_ = true;
  TIDAL_RETURN_IF_ERROR(matmul_->Run({.rows = num_rows_,
                                      .inputs = shape_.hidden_size,
                                      .outputs = dims_.qkv_size(),
                                      .x = act_.normed,
                                      .weight = layer.qkv,
                                      .y = act_.qkv,
                                      .store = Product::Store::kRounded},
                                     stream_.get()));
  TIDAL_RETURN_IF_CUDA_ERROR(
      LaunchRotateAndStore<T>(elementwise(), dims_,
                              {.qkv = act_.qkv,
                               .bias = layer.qkv_bias,
                               .inverse_frequencies = weights_.inverse_frequencies(),
                               .query = act_.query,
                               .cache = cache,
                               .step = tables_.view()}));
  return absl::OkStatus();
}

template <typename T>
absl::Status CudaBackend<T>::RunAttention(int32_t layer, const AttentionPass& pass) {
  if (tables_.counts().num_prefill_tiles > 0 && traits_.has_prefill) {
    const PrefillAttention<T> arguments = {
        .query = act_.query,
        .output = act_.attention,
        .cache = LayerCache(layer),
        .cache_map = cache_maps_.empty() ? nullptr : &cache_maps_[static_cast<size_t>(layer)],
        .step = tables_.view(),
        .tiles = tables_.prefill_tiles(),
        .num_tiles = tables_.counts().num_prefill_tiles};
    TIDAL_RETURN_IF_CUDA_ERROR(LaunchPrefillAttention(
        {.device = prefill_device_, .stream = stream_.get(), .dependent = is_dependent_}, dims_,
        arguments));
    is_dependent_ = true;
  }
  if (!traits_.has_decode()) return absl::OkStatus();
  const DecodeAttention<T> arguments = {.query = act_.query,
                                        .cache = LayerCache(layer),
                                        .output = act_.attention,
                                        .step = tables_.view(),
                                        .pass = pass,
                                        .workspace = attention_workspace_};
  const bool selects = traits_.HasDecodeOf(pass, AttentionKind::kSelect);
  const bool is_context = selects || traits_.HasDecodeOf(pass, AttentionKind::kFull);
  const bool is_sparse = traits_.HasDecodeOf(pass, AttentionKind::kSparse);
  for (const ChunkRange& range : chunk_ranges_) {
    DecodeAttentionLaunch launch = {
        .device = decode_device_,
        .stream = stream_.get(),
        .first_chunk = range.first,
        .num_chunks = range.count,
        .max_sets = traits_.MaxSets(dims_.num_query_heads, dims_.num_kv_heads),
        .dependent = is_dependent_};
    // Not beside a selection's blocks, which leave some multiprocessors free for two of its own.
    if (is_context) {
      launch.dependent &= !has_just_selected_;
      TIDAL_RETURN_IF_CUDA_ERROR(LaunchContextAttention(launch, dims_, arguments));
      launch.dependent = true;
    }
    if (selects) {
      TIDAL_RETURN_IF_CUDA_ERROR(LaunchSelection(launch, dims_, arguments));
      launch.dependent = true;
      has_just_selected_ = true;
    }
    if (is_sparse) {
      launch.dependent &= !has_just_selected_;
      TIDAL_RETURN_IF_CUDA_ERROR(LaunchSparseAttention(launch, dims_, arguments));
    }
    // Not beside a selection's blocks either: the next product's would not lie one a
    // multiprocessor, and nor would those of the products behind it.
    is_dependent_ = !selects;
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status CudaBackend<T>::AddProduct(const T* x, int32_t inputs, const T* weight,
                                        const float* bias) {
  TIDAL_RETURN_IF_ERROR(matmul_->Run({.rows = num_rows_,
                                      .inputs = inputs,
                                      .outputs = shape_.hidden_size,
                                      .x = x,
                                      .weight = weight,
                                      .y = act_.hidden,
                                      .store = Product::Store::kAccumulate},
                                     stream_.get()));
  is_dependent_ = true;
  if (bias != nullptr) {
    TIDAL_RETURN_IF_CUDA_ERROR(LaunchAddBias(elementwise(), dims_, bias, act_.hidden));
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status CudaBackend<T>::RunAttentionOutput(int32_t layer_index) {
  const DeviceLayerWeights<T>& layer = weights_.layer(layer_index);
  if (!SupportsOutputProjection(dims_, num_rows_)) {
    return AddProduct(act_.attention, shape_.query_size(), layer.output, layer.output_bias);
  }
  TIDAL_RETURN_IF_CUDA_ERROR(
      LaunchOutputProjection<T>(skinny(layer_index, StepProduct::kAttentionOutput), dims_,
                                {.input = act_.attention,
                                 .weight = layer.output,
                                 .bias = layer.output_bias,
                                 .hidden = act_.hidden}));
  return absl::OkStatus();
}

template <typename T>
absl::Status CudaBackend<T>::RunMlp(int32_t layer_index) {
  const DeviceLayerWeights<T>& layer = weights_.layer(layer_index);
  if (SupportsGateUp(dims_, num_rows_)) {
    TIDAL_RETURN_IF_CUDA_ERROR(LaunchGateUp<T>(skinny(layer_index, StepProduct::kGateUp), dims_,
                                               {.hidden = act_.hidden,
                                                .norm_weight = layer.mlp_norm,
                                                .weight = layer.gate_up,
                                                .bias = layer.gate_up_bias,
                                                .output = act_.activated}));
    is_dependent_ = true;
  } else {
    TIDAL_RETURN_IF_CUDA_ERROR(
        LaunchRmsNorm(elementwise(), dims_, act_.hidden, layer.mlp_norm, act_.normed));
    is_dependent_ = true;
    TIDAL_RETURN_IF_ERROR(matmul_->Run({.rows = num_rows_,
                                        .inputs = shape_.hidden_size,
                                        .outputs = 2 * shape_.intermediate_size,
                                        .x = act_.normed,
                                        .weight = layer.gate_up,
                                        .y = act_.gate_up,
                                        .store = Product::Store::kRounded},
                                       stream_.get()));
    TIDAL_RETURN_IF_CUDA_ERROR(
        LaunchSiluMultiply(elementwise(), dims_, act_.gate_up, layer.gate_up_bias, act_.activated));
  }
  if (!SupportsDown(dims_, num_rows_)) {
    return AddProduct(act_.activated, shape_.intermediate_size, layer.down, layer.down_bias);
  }
  TIDAL_RETURN_IF_CUDA_ERROR(LaunchDown<T>(skinny(layer_index, StepProduct::kDown), dims_,
                                           {.input = act_.activated,
                                            .weight = layer.down,
                                            .bias = layer.down_bias,
                                            .hidden = act_.hidden}));
  return absl::OkStatus();
}

template <typename T>
absl::Status CudaBackend<T>::RunSample() {
  if (num_samples_ == 0) return absl::OkStatus();
  if (SupportsLmHead(dims_, num_samples_)) {
    SkinnyLaunch launch = skinny(kNumLayerProducts * shape_.num_layers);
    launch.num_rows = num_samples_;
    TIDAL_RETURN_IF_CUDA_ERROR(LaunchLmHead<T>(launch, dims_,
                                               {.hidden = act_.hidden,
                                                .norm_weight = weights_.final_norm(),
                                                .weight = weights_.lm_head(),
                                                .logits = act_.logits,
                                                .step = tables_.view()}));
  } else {
    ElementwiseLaunch launch = elementwise();
    launch.num_rows = num_samples_;
    TIDAL_RETURN_IF_CUDA_ERROR(LaunchSampledRmsNorm(launch, dims_, tables_.view(), act_.hidden,
                                                    weights_.final_norm(), act_.normed));
    TIDAL_RETURN_IF_ERROR(matmul_->Run({.rows = num_samples_,
                                        .inputs = shape_.hidden_size,
                                        .outputs = shape_.vocab_size,
                                        .x = act_.normed,
                                        .weight = weights_.lm_head(),
                                        .y = act_.logits,
                                        .store = Product::Store::kFloat},
                                       stream_.get()));
  }
  TIDAL_RETURN_IF_CUDA_ERROR(sampler_.LaunchDraw({.step = tables_.view(),
                                                  .logits = act_.logits,
                                                  .records = act_.records,
                                                  .num_rows = num_samples_,
                                                  .dependent = true},
                                                 stream_.get()));
  return absl::OkStatus();
}

// --- For tests and tools ---

template <typename T>
absl::Status CudaBackend<T>::ReadLogits(std::vector<float>* logits) {
  logits->resize(num_logits_ * static_cast<size_t>(shape_.vocab_size));
  TIDAL_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(logits->data(), act_.logits,
                                             logits->size() * sizeof(float), cudaMemcpyDeviceToHost,
                                             stream_.get()));
  TIDAL_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream_.get()));
  return absl::OkStatus();
}

template <typename T>
absl::Status CudaBackend<T>::ReadSelection(int32_t chunk_index,
                                           std::vector<std::vector<int32_t>>* positions) {
  positions->clear();
  TIDAL_RETURN_IF_ERROR(
      CheckRange("chunk_index", chunk_index, 0, static_cast<int64_t>(chunks_.size()) - 1));
  const SequenceChunk& chunk = chunks_[static_cast<size_t>(chunk_index)];
  if (chunk.mode != AttentionMode::kTidal) {
    return absl::FailedPreconditionError("the chunk selects no positions");
  }
  const int32_t num_sets =
      NumSets(chunk.selection.scope, dims_.num_query_heads, dims_.num_kv_heads);
  for (int32_t set = 0; set < num_sets; ++set) {
    const int64_t offset = (int64_t{chunk_index} * dims_.num_query_heads + set) *
                           attention_workspace_.max_token_budget;
    std::vector<int32_t>& selected = positions->emplace_back();
    selected.resize(static_cast<size_t>(chunk.selection.token_budget));
    TIDAL_RETURN_IF_CUDA_ERROR(
        cudaMemcpyAsync(selected.data(), attention_workspace_.positions + offset,
                        selected.size() * sizeof(int32_t), cudaMemcpyDeviceToHost, stream_.get()));
  }
  TIDAL_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream_.get()));
  return absl::OkStatus();
}

template <typename T>
absl::StatusOr<double> CudaBackend<T>::MeasureReadBandwidth() {
  // The larger of what is there; at least several times the L2 for the models that this serves.
  const bool takes_cache = kv_cache_arena_.used_bytes() > weights_.size_bytes();
  const void* memory = takes_cache ? static_cast<const void*>(kv_cache_) : weights_.layer(0).qkv;
  const int64_t size_bytes =
      takes_cache ? kv_cache_arena_.used_bytes()
                  : weights_.size_bytes() -
                        (reinterpret_cast<const char*>(weights_.layer(0).qkv) -
                         reinterpret_cast<const char*>(weights_.layer(0).attention_norm));
  double bytes_a_second = 0.0;
  TIDAL_RETURN_IF_CUDA_ERROR(
      ::tidal::cuda::MeasureReadBandwidth(memory, size_bytes, device_.num_multiprocessors,
                                          stream_.get(), act_.logits, &bytes_a_second));
  return bytes_a_second;
}

// --- What this backend takes ---

absl::Status CheckCudaShape(const ModelShape& shape) {
  if (shape.head_dim != 64 && shape.head_dim != 128) {
    return absl::InvalidArgumentError(
        absl::StrCat("head_dim is ", shape.head_dim, ", CUDA serves 64 and 128"));
  }
  TIDAL_RETURN_IF_ERROR(CheckShape(shape));
  TIDAL_RETURN_IF_ERROR(CheckRange("num_query_heads / num_kv_heads", shape.group_size(), 1,
                                   std::min(kMaxAttentionGroup, kMaxPrefillGroupSize)));
  TIDAL_RETURN_IF_ERROR(CheckRange("vocab_size", shape.vocab_size, 1, kMaxSamplerVocabSize));
  const ModelDims dims = DimsOf(shape);
  if (!SupportsElementwise(dims) || !SupportsDecodeAttention(dims) ||
      !SupportsPrefillAttention(dims)) {
    return absl::InvalidArgumentError(
        absl::StrCat("hidden_size ", shape.hidden_size, " and intermediate_size ",
                     shape.intermediate_size, " must be multiples of 8"));
  }
  return absl::OkStatus();
}

template <typename T>
absl::StatusOr<std::unique_ptr<Backend>> Create(const ModelShape& shape, const StepLimits& limits,
                                                const DeviceInfo& device, int64_t limit_bytes) {
  auto backend = std::make_unique<CudaBackend<T>>(shape, limits, device, limit_bytes);
  TIDAL_RETURN_IF_ERROR(backend->Init());
  return backend;
}

}  // namespace
}  // namespace cuda

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackendOnDevice(
    const ModelShape& shape, const StepLimits& limits, const CudaBackendOptions& options) {
  TIDAL_ASSIGN_OR_RETURN(const cuda::DeviceInfo device, cuda::OpenDevice(/*ordinal=*/0));
  TIDAL_RETURN_IF_ERROR(cuda::CheckCudaShape(shape));
  TIDAL_RETURN_IF_ERROR(CheckLimits(limits));
  if (!(options.memory_fraction > 0.0 && options.memory_fraction <= 1.0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("memory_fraction is ", options.memory_fraction, ", must be in (0, 1]"));
  }
  const auto limit_bytes =
      static_cast<int64_t>(options.memory_fraction * static_cast<double>(device.total_bytes));
  switch (options.compute_type) {
    case DType::kBFloat16:
      return cuda::Create<__nv_bfloat16>(shape, limits, device, limit_bytes);
    case DType::kFloat16:
      return cuda::Create<__half>(shape, limits, device, limit_bytes);
    case DType::kFloat32:
      break;
  }
  return absl::InvalidArgumentError("compute_type is float32, must be bfloat16 or float16");
}

}  // namespace tidal
