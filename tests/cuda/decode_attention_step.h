// A decode step for tests of decode_attention.h: chunks with random queries and a random paged
// cache, on the device and on the host, and what float64 on the CPU makes of them.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "cuda/kernels/decode_attention.h"
#include "cuda/kernels/step_view.h"
#include "engine/backend/attention.h"

namespace tidal::cuda {

#define ASSERT_CUDA_OK(expression) ASSERT_EQ(cudaSuccess, (expression))

inline bool HasDevice() {
  int num_devices = 0;
  return cudaGetDeviceCount(&num_devices) == cudaSuccess && num_devices > 0;
}

// An array in device memory; new ones are poisoned with bytes 0xFF (NaN in every element type).
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t size) : size_(size) {
    EXPECT_EQ(cudaSuccess, cudaMalloc(&elements_, std::max<size_t>(size, 1) * sizeof(T)));
    Fill(0xFF);
  }
  explicit DeviceArray(const std::vector<T>& elements) : DeviceArray(elements.size()) {
    Write(elements);
  }
  ~DeviceArray() { cudaFree(elements_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* get() const { return elements_; }
  void Fill(int byte) { EXPECT_EQ(cudaSuccess, cudaMemset(elements_, byte, size_ * sizeof(T))); }
  void Write(const std::vector<T>& elements) {
    EXPECT_EQ(cudaSuccess, cudaMemcpy(elements_, elements.data(), elements.size() * sizeof(T),
                                      cudaMemcpyHostToDevice));
  }
  std::vector<T> Read() const { return Read(elements_, size_); }
  // Elements from inside of an array.
  static std::vector<T> Read(const T* source, size_t size) {
    std::vector<T> elements(size);
    EXPECT_EQ(cudaSuccess,
              cudaMemcpy(elements.data(), source, size * sizeof(T), cudaMemcpyDeviceToHost));
    return elements;
  }

 private:
  size_t size_;
  T* elements_ = nullptr;
};

inline size_t Size(int64_t value) { return static_cast<size_t>(value); }

inline ModelDims Dims(int32_t num_query_heads, int32_t num_kv_heads, int32_t head_dim) {
  return {1, 64, 64, num_query_heads, num_kv_heads, head_dim, 64, 1e-5f};
}

inline DeviceChunk Decode(int32_t context, AttentionMode mode = AttentionMode::kFull,
                          const Selection& selection = {}) {
  DeviceChunk chunk = {};
  chunk.num_tokens = 1;
  chunk.num_context_tokens = context;
  chunk.token_budget = selection.token_budget;
  chunk.num_sink_tokens = selection.num_sink_tokens;
  chunk.num_recent_tokens = selection.num_recent_tokens;
  chunk.mode = mode;
  chunk.scope = selection.scope;
  return chunk;
}

inline DeviceChunk Tidal(int32_t context, SelectionScope scope, int32_t budget, int32_t sinks = 0,
                         int32_t recents = 0) {
  return Decode(context, AttentionMode::kTidal, {scope, budget, sinks, recents});
}

inline AttentionPass Pass(AttentionKind of_full, AttentionKind of_tidal) {
  AttentionPass pass;
  pass.kind_of_mode = {of_full, of_tidal, AttentionKind::kQuest};
  return pass;
}

inline const AttentionPass kSelectPass = Pass(AttentionKind::kFull, AttentionKind::kSelect);
inline const AttentionPass kSparsePass = Pass(AttentionKind::kFull, AttentionKind::kSparse);

// A step of chunks with random queries and a random cache, on the device and on the host. Blocks
// are dealt out at random; rows of the cache behind a context's end are NaN.
template <typename T>
class Step {
 public:
  Step(const ModelDims& dims, std::vector<DeviceChunk> chunks, uint32_t seed = 1,
       int32_t num_multiprocessors = 0)
      : dims_(dims), chunks_(std::move(chunks)), random_(seed) {
    EXPECT_EQ(cudaSuccess, InitDecodeAttention(&device_));
    if (num_multiprocessors > 0) device_.num_multiprocessors = num_multiprocessors;
    EXPECT_EQ(cudaSuccess, cudaStreamCreate(&stream_));
    LayOut();
    FillCache();
    query_host_ = RandomElements(Size(int64_t{num_rows_} * dims.query_size()), 2.0f);
    query_ = std::make_unique<DeviceArray<T>>(query_host_);
    output_ = std::make_unique<DeviceArray<T>>(query_host_.size());
    counts_ = std::make_unique<DeviceArray<StepView::Counts>>(
        std::vector<StepView::Counts>{{num_rows_, num_chunks(), 0, 0}});
    chunks_device_ = std::make_unique<DeviceArray<DeviceChunk>>(chunks_.size() + kSpareChunks);
    chunks_device_->Write(chunks_);
    const int64_t bytes = DecodeAttentionWorkspaceBytes(device_, dims_, limits_);
    memory_ = std::make_unique<DeviceArray<char>>(Size(bytes));
    memory_->Fill(0);
    workspace_ = MakeDecodeAttentionWorkspace(memory_->get(), device_, dims_, limits_);
  }
  ~Step() { EXPECT_EQ(cudaSuccess, cudaStreamDestroy(stream_)); }
  Step(const Step&) = delete;
  Step& operator=(const Step&) = delete;

  int32_t num_chunks() const { return static_cast<int32_t>(chunks_.size()); }
  const DeviceChunk& chunk(int32_t index) const { return chunks_[Size(index)]; }
  const DecodeAttentionWorkspace& workspace() const { return workspace_; }
  cudaStream_t stream() const { return stream_; }
  const ModelDims& dims() const { return dims_; }

  DecodeAttentionLaunch Launch() const {
    DecodeAttentionLaunch launch;
    launch.device = device_;
    launch.stream = stream_;
    launch.num_chunks = num_chunks() + kSpareChunks;
    launch.max_sets = dims_.num_query_heads;
    return launch;
  }

  DecodeAttention<T> Arguments(const AttentionPass& pass) const {
    StepView step = {};
    step.counts = counts_->get();
    step.chunks = chunks_device_->get();
    step.block_tables = tables_->get();
    step.block_table_stride = table_stride_;
    const KvCacheView<T> cache = {cache_->get(), dims_.num_kv_heads, dims_.head_dim};
    return {query_->get(), cache, output_->get(), step, pass, workspace_};
  }

  // The launches of a layer whose pass this is.
  cudaError_t Enqueue(const DecodeAttentionLaunch& launch, const AttentionPass& pass) {
    const DecodeAttention<T> arguments = Arguments(pass);
    const auto has = [&pass](AttentionKind kind) {
      return std::find(pass.kind_of_mode.begin(), pass.kind_of_mode.end(), kind) !=
             pass.kind_of_mode.end();
    };
    cudaError_t error = LaunchContextAttention<T>(launch, dims_, arguments);
    if (error == cudaSuccess && has(AttentionKind::kSelect)) {
      error = LaunchSelection<T>(launch, dims_, arguments);
    }
    if (error == cudaSuccess && has(AttentionKind::kSparse)) {
      error = LaunchSparseAttention<T>(launch, dims_, arguments);
    }
    return error;
  }

  void Run(const DecodeAttentionLaunch& launch, const AttentionPass& pass) {
    output_->Fill(0xFF);
    ASSERT_CUDA_OK(Enqueue(launch, pass));
    ASSERT_CUDA_OK(cudaStreamSynchronize(stream_));
  }

  void ClearOutput() { output_->Fill(0xFF); }
  std::vector<T> Output() const { return output_->Read(); }
  // The query heads' outputs of a chunk's first row.
  std::vector<double> Output(int32_t chunk_index) const {
    const std::vector<T> all = output_->Read();
    const int64_t first = int64_t{chunk(chunk_index).first_row} * dims_.query_size();
    std::vector<double> result;
    for (int64_t i = first; i < first + dims_.query_size(); ++i) {
      result.push_back(static_cast<double>(static_cast<float>(all[Size(i)])));
    }
    return result;
  }

  // [query head][position], q k / sqrt(head_dim).
  std::vector<std::vector<double>> Scores(int32_t chunk_index) const {
    std::vector<std::vector<double>> scores(Size(dims_.num_query_heads));
    for (int32_t head = 0; head < dims_.num_query_heads; ++head) {
      for (int32_t position = 0; position < chunk(chunk_index).num_context_tokens; ++position) {
        double sum = 0.0;
        for (int32_t i = 0; i < dims_.head_dim; ++i) {
          sum += Query(chunk_index, head, i) * Cached(chunk_index, position, head, i, false);
        }
        scores[Size(head)].push_back(sum / std::sqrt(dims_.head_dim));
      }
    }
    return scores;
  }

  // Softmax over `positions` of each query head, times V; [query_size].
  std::vector<double> Attend(int32_t chunk_index, const std::vector<std::vector<double>>& scores,
                             const std::vector<std::vector<int32_t>>& positions) const {
    std::vector<double> output;
    for (int32_t head = 0; head < dims_.num_query_heads; ++head) {
      const std::vector<double>& row = scores[Size(head)];
      double max = -std::numeric_limits<double>::infinity();
      for (const int32_t t : positions[Size(head)]) max = std::max(max, row[Size(t)]);
      double sum = 0.0;
      std::vector<double> values(Size(dims_.head_dim));
      for (const int32_t t : positions[Size(head)]) {
        const double p = std::exp(row[Size(t)] - max);
        sum += p;
        for (int32_t i = 0; i < dims_.head_dim; ++i) {
          values[Size(i)] += p * Cached(chunk_index, t, head, i, true);
        }
      }
      for (const double value : values) output.push_back(value / sum);
    }
    return output;
  }

  // What LaunchSelection has left of a chunk: [set][token_budget].
  std::vector<std::vector<int32_t>> Selected(int32_t chunk_index) const {
    const DeviceChunk& c = chunk(chunk_index);
    const int32_t num_sets = c.scope == SelectionScope::kQueryHead ? dims_.num_query_heads
                             : c.scope == SelectionScope::kKvHead  ? dims_.num_kv_heads
                                                                   : 1;
    std::vector<std::vector<int32_t>> sets;
    for (int32_t set = 0; set < num_sets; ++set) {
      const int64_t row =
          (int64_t{chunk_index} * dims_.num_query_heads + set) * workspace_.max_token_budget;
      sets.push_back(DeviceArray<int32_t>::Read(workspace_.positions + row, Size(c.token_budget)));
      const auto rows =
          DeviceArray<int32_t>::Read(workspace_.cache_rows + row, Size(c.token_budget));
      for (size_t i = 0; i < rows.size(); ++i) {
        EXPECT_EQ(CacheRow(chunk_index, sets.back()[i]), rows[i]);
      }
    }
    return sets;
  }

  // The scores that the workspace holds for kSelect chunk `chunk_index`, the first of the launch.
  float* FirstScores() const { return workspace_.scores; }

  // Makes the keys of all positions equal to the first `num_distinct` ones', in turn.
  void RepeatKeys(int32_t chunk_index, int32_t num_distinct) {
    const KvCacheView<T> view = {nullptr, dims_.num_kv_heads, dims_.head_dim};
    for (int32_t t = num_distinct; t < chunk(chunk_index).num_context_tokens; ++t) {
      for (int32_t head = 0; head < dims_.num_kv_heads; ++head) {
        const int64_t to = view.key_offset(CacheRow(chunk_index, t), head);
        const int64_t from = view.key_offset(CacheRow(chunk_index, t % num_distinct), head);
        std::copy_n(cache_host_.begin() + from, dims_.head_dim, cache_host_.begin() + to);
      }
    }
    cache_->Write(cache_host_);
  }

 private:
  // Of the launch's bucket, not of the step.
  static constexpr int32_t kSpareChunks = 3;

  std::vector<T> RandomElements(size_t size, float scale) {
    std::uniform_real_distribution<float> uniform(-scale, scale);
    std::vector<T> elements(size);
    for (T& element : elements) element = static_cast<T>(uniform(random_));
    return elements;
  }

  // Rows, sampler slots, block tables and limits.
  void LayOut() {
    int32_t max_blocks = 1;
    int32_t num_blocks = 3;  // of no sequence
    for (DeviceChunk& chunk : chunks_) {
      chunk.first_row = num_rows_;
      num_rows_ += chunk.num_tokens;
      const int32_t blocks = (chunk.num_context_tokens + kBlockSize - 1) / kBlockSize;
      max_blocks = std::max(max_blocks, blocks);
      num_blocks += blocks;
      limits_.max_score_tokens += int64_t{blocks} * kBlockSize;
      limits_.max_token_budget = std::max(limits_.max_token_budget, chunk.token_budget);
    }
    limits_.max_batch_sequences = num_chunks();
    limits_.max_token_budget = std::max(limits_.max_token_budget, 1);
    table_stride_ = max_blocks + 2;
    std::vector<int32_t> free_blocks(Size(num_blocks));
    std::iota(free_blocks.begin(), free_blocks.end(), 0);
    std::shuffle(free_blocks.begin(), free_blocks.end(), random_);
    std::vector<int32_t> slots(chunks_.size());
    std::iota(slots.begin(), slots.end(), 0);
    std::shuffle(slots.begin(), slots.end(), random_);
    tables_host_.assign(chunks_.size() * Size(table_stride_), -1);
    for (size_t i = 0; i < chunks_.size(); ++i) {
      chunks_[i].sampler_slot = slots[i];
      for (int32_t b = 0; b * kBlockSize < chunks_[i].num_context_tokens; ++b) {
        tables_host_[Size(slots[i]) * Size(table_stride_) + Size(b)] = free_blocks.back();
        free_blocks.pop_back();
      }
    }
    num_blocks_ = num_blocks;
    tables_ = std::make_unique<DeviceArray<int32_t>>(tables_host_);
  }

  void FillCache() {
    const KvCacheView<T> view = {nullptr, dims_.num_kv_heads, dims_.head_dim};
    T poison;
    std::memset(static_cast<void*>(&poison), 0xFF, sizeof(poison));
    cache_host_.assign(Size(num_blocks_ * view.block_stride()), poison);
    for (int32_t index = 0; index < num_chunks(); ++index) {
      for (int32_t t = 0; t < chunk(index).num_context_tokens; ++t) {
        for (int32_t head = 0; head < dims_.num_kv_heads; ++head) {
          const int64_t key = view.key_offset(CacheRow(index, t), head);
          const std::vector<T> row = RandomElements(Size(2 * dims_.head_dim), 1.0f);
          std::copy_n(row.begin(), dims_.head_dim, cache_host_.begin() + key);
          std::copy_n(row.begin() + dims_.head_dim, dims_.head_dim,
                      cache_host_.begin() + key + view.value_offset());
        }
      }
    }
    cache_ = std::make_unique<DeviceArray<T>>(cache_host_);
  }

  int32_t CacheRow(int32_t chunk_index, int32_t position) const {
    const size_t table = Size(chunk(chunk_index).sampler_slot) * Size(table_stride_);
    return tables_host_[table + Size(position / kBlockSize)] * kBlockSize + position % kBlockSize;
  }
  double Query(int32_t chunk_index, int32_t head, int32_t i) const {
    const int64_t row = int64_t{chunk(chunk_index).first_row} * dims_.num_query_heads + head;
    return static_cast<double>(static_cast<float>(query_host_[Size(row * dims_.head_dim + i)]));
  }
  // Element i of a position's key or value for a query head.
  double Cached(int32_t chunk_index, int32_t position, int32_t head, int32_t i,
                bool is_value) const {
    const KvCacheView<T> view = {nullptr, dims_.num_kv_heads, dims_.head_dim};
    const int64_t offset =
        view.key_offset(CacheRow(chunk_index, position), head / dims_.group_size()) + i +
        (is_value ? view.value_offset() : 0);
    return static_cast<double>(static_cast<float>(cache_host_[Size(offset)]));
  }

  ModelDims dims_;
  std::vector<DeviceChunk> chunks_;
  std::mt19937 random_;
  DecodeAttentionDevice device_;
  DecodeAttentionLimits limits_;
  cudaStream_t stream_ = nullptr;
  int32_t num_rows_ = 0;
  int32_t num_blocks_ = 0;
  int32_t table_stride_ = 0;
  std::vector<int32_t> tables_host_;
  std::vector<T> cache_host_;
  std::vector<T> query_host_;
  std::unique_ptr<DeviceArray<int32_t>> tables_;
  std::unique_ptr<DeviceArray<T>> cache_;
  std::unique_ptr<DeviceArray<T>> query_;
  std::unique_ptr<DeviceArray<T>> output_;
  std::unique_ptr<DeviceArray<StepView::Counts>> counts_;
  std::unique_ptr<DeviceArray<DeviceChunk>> chunks_device_;
  std::unique_ptr<DeviceArray<char>> memory_;
  DecodeAttentionWorkspace workspace_ = {};
};

}  // namespace tidal::cuda
