#include "engine/cpu/cpu_backend.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/backend/checks.h"
#include "engine/backend/status_macros.h"
#include "engine/cpu/arena.h"
#include "engine/cpu/attention.h"
#include "engine/cpu/kernels.h"
#include "engine/cpu/kv_cache.h"
#include "engine/cpu/matmul.h"
#include "engine/cpu/memory.h"
#include "engine/cpu/read_bandwidth.h"
#include "engine/cpu/rotary.h"
#include "engine/cpu/sampler.h"
#include "engine/cpu/step_tables.h"
#include "engine/cpu/thread_pool.h"
#include "engine/cpu/weights.h"

namespace tidal {
namespace cpu {
namespace {

class CpuBackend final : public Backend {
 public:
  CpuBackend(const ModelShape& shape, const StepLimits& limits, const CpuBackendOptions& options)
      : shape_(shape),
        limits_(limits),
        kernels_(BestKernels()),
        pool_(options.num_threads),
        cache_(shape),
        step_(shape, limits),
        attention_(shape, limits, &kernels_, &pool_),
        sampler_(limits.max_batch_sequences, shape.vocab_size, pool_.num_threads(), &kernels_) {}

  absl::Status AllocateWorkspaces();

  std::string description() const override;
  absl::Status LoadWeights(const ModelWeights& weights) override;
  absl::Status FillRandomWeights(uint64_t seed) override;
  int64_t AvailableMemoryBytes() const override { return cpu::AvailableMemoryBytes(); }
  int64_t kv_block_size_bytes() const override { return cache_.block_size_bytes(); }
  absl::Status AllocateKvCache(int32_t num_blocks) override;
  MemoryUse memory_use() const override;
  absl::Status BindSampler(int32_t slot, const SamplingParams& params,
                           absl::Span<const int32_t> prompt_token_ids,
                           absl::Span<const int32_t> generated_token_ids) override;

  absl::Status CheckAttention(AttentionMode /*mode*/,
                              const Selection& /*selection*/) const override {
    return absl::OkStatus();
  }

  absl::Status BeginStep(const StepBatch& batch) override;
  absl::Status Embed() override;
  absl::Status AttentionInput(int32_t layer) override;
  absl::Status Attention(int32_t layer, const AttentionPass& pass) override;
  absl::Status AttentionOutput(int32_t layer) override;
  absl::Status Mlp(int32_t layer) override;
  absl::Status Sample() override;
  absl::Status EndStep(std::vector<SampledToken>* sampled) override;

  absl::Status ReadLogits(std::vector<float>* logits) override;
  absl::Status ReadSelection(int32_t chunk_index,
                             std::vector<std::vector<int32_t>>* positions) override;
  absl::Status ReadAttentionProbabilities(int32_t layer, int32_t chunk_index,
                                          std::vector<std::vector<float>>* probabilities) override {
    return attention_.ReadProbabilities(InputsOf(layer), chunk_index, probabilities);
  }
  absl::StatusOr<double> MeasureReadBandwidth() override {
    return cpu::MeasureReadBandwidth(&pool_);
  }

 private:
  // Activations, a row for each of the step's tokens.
  struct Activations {
    absl::Span<float> hidden;     // [max_batch_tokens, hidden]
    absl::Span<float> normed;     // [max_batch_tokens, hidden]
    absl::Span<float> qkv;        // [max_batch_tokens, query_size + 2 * kv_size]
    absl::Span<float> attention;  // [max_batch_tokens, query_size]
    absl::Span<float> gate_up;    // [max_batch_tokens, 2 * intermediate]
    absl::Span<float> cosines;    // [max_batch_tokens, head_dim / 2]
    absl::Span<float> sines;      // [max_batch_tokens, head_dim / 2]
    absl::Span<float> logits;     // [max_batch_sequences, vocab]
  };

  void LayOut(Arena* arena);
  AttentionInputs InputsOf(int32_t layer) {
    return {.step = &step_,
            .cache = &cache_,
            .layer = layer,
            .queries = {act_.qkv.data(), qkv_size()},
            .output = {act_.attention.data(), shape_.query_size()}};
  }
  int64_t qkv_size() const { return shape_.query_size() + 2 * int64_t{shape_.kv_size()}; }

  // Calls run(row) for every row of the step, on all threads where there are many.
  template <typename Function>
  void ForEachRow(const Function& run);

  void Norm(absl::Span<const float> weight, int32_t source_row, int32_t row);
  void Product(const float* x, int64_t x_stride, int32_t num_rows, const PackedMatrix& weights,
               absl::Span<const float> bias, Store store, float* y);

  const ModelShape shape_;
  const StepLimits limits_;
  const Kernels& kernels_;
  ThreadPool pool_;
  CpuWeights weights_;
  KvCache cache_;
  StepTables step_;
  CpuAttention attention_;
  Sampler sampler_;
  Arena arena_;
  Activations act_;
  std::vector<SampledToken> sampled_;
  size_t num_logits_ = 0;  // valid elements of act_.logits
};

// --- Life ---

absl::Status CpuBackend::AllocateWorkspaces() {
  Arena count;
  LayOut(&count);
  TIDAL_ASSIGN_OR_RETURN(
      arena_,
      Arena::Allocate(count.used_bytes(), /*commit=*/true,
                      absl::StrCat("the workspace for ", limits_.max_batch_tokens, " tokens and ",
                                   limits_.max_batch_sequences, " sequences a step")));
  LayOut(&arena_);
  sampled_.reserve(static_cast<size_t>(limits_.max_batch_sequences));
  return absl::OkStatus();
}

void CpuBackend::LayOut(Arena* arena) {
  const int64_t rows = limits_.max_batch_tokens;
  // The rows that sample are gathered in `normed`.
  const int64_t normed_rows = std::max(limits_.max_batch_tokens, limits_.max_batch_sequences);
  act_.hidden = arena->Take<float>(rows * shape_.hidden_size);
  act_.normed = arena->Take<float>(normed_rows * shape_.hidden_size);
  act_.qkv = arena->Take<float>(rows * qkv_size());
  act_.attention = arena->Take<float>(rows * shape_.query_size());
  act_.gate_up = arena->Take<float>(rows * 2 * shape_.intermediate_size);
  act_.cosines = arena->Take<float>(rows * (shape_.head_dim / 2));
  act_.sines = arena->Take<float>(rows * (shape_.head_dim / 2));
  act_.logits = arena->Take<float>(int64_t{limits_.max_batch_sequences} * shape_.vocab_size);
  attention_.LayOut(arena);
  sampler_.LayOut(arena);
}

std::string CpuBackend::description() const {
  return absl::StrCat("cpu, ", pool_.num_threads(), " threads, ", kernels_.instruction_set);
}

absl::Status CpuBackend::LoadWeights(const ModelWeights& weights) {
  return weights_.Load(shape_, weights, &pool_);
}

absl::Status CpuBackend::FillRandomWeights(uint64_t seed) {
  return weights_.FillRandom(shape_, seed, &pool_);
}

absl::Status CpuBackend::AllocateKvCache(int32_t num_blocks) {
  TIDAL_RETURN_IF_ERROR(cache_.Allocate(num_blocks));
  return attention_.AllocateScores(num_blocks);
}

MemoryUse CpuBackend::memory_use() const {
  return {.weights_bytes = weights_.size_bytes(),
          .kv_cache_bytes = cache_.size_bytes(),
          .workspace_bytes = arena_.used_bytes() + attention_.scores_size_bytes()};
}

absl::Status CpuBackend::BindSampler(int32_t slot, const SamplingParams& params,
                                     absl::Span<const int32_t> prompt_token_ids,
                                     absl::Span<const int32_t> generated_token_ids) {
  return sampler_.Bind(slot, params, prompt_token_ids, generated_token_ids);
}

// --- The stages, in the order of a step ---

template <typename Function>
void CpuBackend::ForEachRow(const Function& run) {
  constexpr int32_t kTaskRows = 16;
  const int32_t num_rows = step_.num_rows();
  pool_.ParallelFor((num_rows + kTaskRows - 1) / kTaskRows, [&](int task, int) {
    const int32_t end = std::min(num_rows, (task + 1) * kTaskRows);
    for (int32_t row = task * kTaskRows; row < end; ++row) run(row);
  });
}

void CpuBackend::Norm(absl::Span<const float> weight, int32_t source_row, int32_t row) {
  const int64_t size = shape_.hidden_size;
  kernels_.rms_norm(act_.hidden.data() + source_row * size, weight.data(), shape_.hidden_size,
                    shape_.rms_norm_eps, act_.normed.data() + row * size);
}

void CpuBackend::Product(const float* x, int64_t x_stride, int32_t num_rows,
                         const PackedMatrix& weights, absl::Span<const float> bias, Store store,
                         float* y) {
  Multiply(kernels_, &pool_, {x, x_stride}, num_rows, weights, bias, store,
           {y, weights.num_outputs()});
}

absl::Status CpuBackend::BeginStep(const StepBatch& batch) {
  if (weights_.size_bytes() == 0) return absl::FailedPreconditionError("no weights are loaded");
  TIDAL_RETURN_IF_ERROR(step_.Set(batch, cache_.num_blocks()));
  attention_.BeginStep();
  sampled_.clear();
  num_logits_ = 0;
  const int64_t half_dim = shape_.head_dim / 2;
  ForEachRow([&](int32_t row) {
    RotaryAngles(shape_.rope_inverse_frequencies, step_.positions()[static_cast<size_t>(row)],
                 act_.cosines.data() + row * half_dim, act_.sines.data() + row * half_dim);
  });
  return absl::OkStatus();
}

absl::Status CpuBackend::Embed() {
  for (size_t row = 0; row < step_.token_ids().size(); ++row) {
    int32_t token_id = step_.token_ids()[row];
    if (token_id == kLastSampledToken) {
      const int32_t chunk = step_.chunk_of_row()[row];
      const int32_t slot = step_.chunks()[static_cast<size_t>(chunk)].chunk.sampler_slot;
      token_id = sampler_.last_token(slot);
      if (token_id == kLastSampledToken) {
        return absl::FailedPreconditionError(
            absl::StrCat("sampler slot ", slot, " has drawn no token yet"));
      }
    }
    weights_.CopyEmbedding(token_id,
                           act_.hidden.data() + static_cast<int64_t>(row) * shape_.hidden_size);
  }
  return absl::OkStatus();
}

absl::Status CpuBackend::AttentionInput(int32_t layer) {
  const CpuLayerWeights& weights = weights_.layer(layer);
  ForEachRow([&](int32_t row) { Norm(weights.attention_norm, row, row); });
  Product(act_.normed.data(), shape_.hidden_size, step_.num_rows(), weights.qkv, weights.qkv_bias,
          Store::kOverwrite, act_.qkv.data());
  const int32_t half_dim = shape_.head_dim / 2;
  const float score_scale = 1.0f / std::sqrt(static_cast<float>(shape_.head_dim));
  ForEachRow([&](int32_t row) {
    const float* cosines = act_.cosines.data() + int64_t{row} * half_dim;
    const float* sines = act_.sines.data() + int64_t{row} * half_dim;
    float* queries = act_.qkv.data() + row * qkv_size();
    float* keys = queries + shape_.query_size();
    RotateHeads(cosines, sines, half_dim, shape_.num_query_heads, score_scale, queries);
    RotateHeads(cosines, sines, half_dim, shape_.num_kv_heads, 1.0f, keys);
    cache_.Write(layer, step_.slots()[static_cast<size_t>(row)], keys, keys + shape_.kv_size());
  });
  // All of a block's keys again, also where one is appended: a chunk may as well have rewritten
  // one.
  const absl::Span<const WrittenBlock> blocks = step_.written_blocks();
  constexpr int kTaskBlocks = 8;
  const int num_blocks = static_cast<int>(blocks.size());
  pool_.ParallelFor((num_blocks + kTaskBlocks - 1) / kTaskBlocks, [&](int task, int) {
    const int end = std::min(num_blocks, (task + 1) * kTaskBlocks);
    for (int i = task * kTaskBlocks; i < end; ++i) {
      const WrittenBlock& written = blocks[static_cast<size_t>(i)];
      cache_.UpdateBounds(kernels_, layer, written.block, written.num_tokens);
    }
  });
  return absl::OkStatus();
}

absl::Status CpuBackend::Attention(int32_t layer, const AttentionPass& pass) {
  return attention_.Run(InputsOf(layer), pass);
}

absl::Status CpuBackend::AttentionOutput(int32_t layer) {
  const CpuLayerWeights& weights = weights_.layer(layer);
  Product(act_.attention.data(), shape_.query_size(), step_.num_rows(), weights.output,
          weights.output_bias, Store::kAccumulate, act_.hidden.data());
  return absl::OkStatus();
}

absl::Status CpuBackend::Mlp(int32_t layer) {
  const CpuLayerWeights& weights = weights_.layer(layer);
  const int64_t gate_up_size = 2 * int64_t{shape_.intermediate_size};
  ForEachRow([&](int32_t row) { Norm(weights.mlp_norm, row, row); });
  Product(act_.normed.data(), shape_.hidden_size, step_.num_rows(), weights.gate_up,
          weights.gate_up_bias, Store::kOverwrite, act_.gate_up.data());
  ForEachRow([&](int32_t row) {
    float* gate = act_.gate_up.data() + row * gate_up_size;
    kernels_.silu_multiply(gate, gate + shape_.intermediate_size, shape_.intermediate_size);
  });
  Product(act_.gate_up.data(), gate_up_size, step_.num_rows(), weights.down, weights.down_bias,
          Store::kAccumulate, act_.hidden.data());
  return absl::OkStatus();
}

absl::Status CpuBackend::Sample() {
  const absl::Span<const int32_t> sampling = step_.sampling_chunks();
  const int32_t num_rows = static_cast<int32_t>(sampling.size());
  const size_t vocab_size = static_cast<size_t>(shape_.vocab_size);
  for (int32_t row = 0; row < num_rows; ++row) {
    const StepChunk& chunk =
        step_.chunks()[static_cast<size_t>(sampling[static_cast<size_t>(row)])];
    Norm(weights_.final_norm(), chunk.first_row + chunk.chunk.num_tokens() - 1, row);
  }
  Product(act_.normed.data(), shape_.hidden_size, num_rows, weights_.lm_head(), {},
          Store::kOverwrite, act_.logits.data());
  num_logits_ = sampling.size() * vocab_size;
  sampled_.resize(sampling.size());
  pool_.ParallelFor(num_rows, [&](int row, int thread) {
    const size_t index = static_cast<size_t>(row);
    const StepChunk& chunk = step_.chunks()[static_cast<size_t>(sampling[index])];
    sampled_[index] = sampler_.Sample(chunk.chunk.sampler_slot,
                                      act_.logits.subspan(index * vocab_size, vocab_size), thread);
  });
  return absl::OkStatus();
}

absl::Status CpuBackend::EndStep(std::vector<SampledToken>* sampled) {
  *sampled = std::move(sampled_);
  sampled_.clear();
  return absl::OkStatus();
}

// --- For tests and tools ---

absl::Status CpuBackend::ReadLogits(std::vector<float>* logits) {
  logits->assign(act_.logits.begin(), act_.logits.begin() + static_cast<int64_t>(num_logits_));
  return absl::OkStatus();
}

absl::Status CpuBackend::ReadSelection(int32_t chunk_index,
                                       std::vector<std::vector<int32_t>>* positions) {
  return attention_.ReadSelection(chunk_index, positions);
}

// --- What shapes this backend takes ---

absl::Status CheckCpuShape(const ModelShape& shape) {
  TIDAL_RETURN_IF_ERROR(CheckRange("head_dim", shape.head_dim, 16, kMaxCpuHeadDim));
  if (shape.head_dim % 16 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("head_dim is ", shape.head_dim, ", must be a multiple of 16"));
  }
  return CheckShape(shape);
}

}  // namespace
}  // namespace cpu

absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(const ModelShape& shape,
                                                          const StepLimits& limits,
                                                          const CpuBackendOptions& options) {
  TIDAL_RETURN_IF_ERROR(cpu::CheckCpuShape(shape));
  TIDAL_RETURN_IF_ERROR(CheckLimits(limits));
  TIDAL_RETURN_IF_ERROR(CheckRange("num_threads", options.num_threads, 0, 1024));
  auto backend = std::make_unique<cpu::CpuBackend>(shape, limits, options);
  TIDAL_RETURN_IF_ERROR(backend->AllocateWorkspaces());
  return backend;
}

}  // namespace tidal
