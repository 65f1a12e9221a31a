#include "engine/cpu/attention_prefill.h"

#include <algorithm>
#include <limits>

namespace tidal::cpu {
namespace {

// Rows of a query tile: enough to amortise gathering and transposing a KV tile.
constexpr int32_t kQueryTileRows = 256;

}  // namespace

PrefillAttention::PrefillAttention(const ModelShape& shape, const Kernels* kernels, int num_threads)
    : shape_(shape),
      kernels_(kernels),
      tile_tokens_(std::max(kQueryTileRows / shape.group_size(), 1)),
      padded_head_dim_((shape.head_dim + kPanelWidth - 1) / kPanelWidth * kPanelWidth),
      workspaces_(static_cast<size_t>(num_threads)) {}

void PrefillAttention::LayOut(Arena* arena) {
  const int64_t rows = int64_t{tile_tokens_} * shape_.group_size();
  for (Workspace& workspace : workspaces_) {
    workspace.queries = arena->Take<float>(rows * shape_.head_dim);
    workspace.ends = arena->Take<int32_t>(rows);
    workspace.keys = arena->Take<float>(int64_t{shape_.head_dim} * kKvTile);
    workspace.values = arena->Take<float>(int64_t{kKvTile} * padded_head_dim_);
    workspace.scores = arena->Take<float>(int64_t{kMaxTileRows} * kKvTile);
    workspace.output = arena->Take<float>(rows * padded_head_dim_);
    workspace.max = arena->Take<float>(rows);
    workspace.sum = arena->Take<float>(rows);
  }
}

void PrefillAttention::AddTasks(const StepChunk& chunk, int32_t index,
                                std::vector<AttentionTask>* tasks) const {
  const int32_t num_tiles = (chunk.chunk.num_tokens() + tile_tokens_ - 1) / tile_tokens_;
  for (int32_t tile = num_tiles - 1; tile >= 0; --tile) {
    for (int32_t kv_head = 0; kv_head < shape_.num_kv_heads; ++kv_head) {
      tasks->push_back({index, AttentionKind::kFull, /*prefill=*/true, kv_head, tile});
    }
  }
}

void PrefillAttention::Run(const AttentionInputs& inputs, const AttentionTask& task, int thread) {
  Workspace& workspace = workspaces_[static_cast<size_t>(thread)];
  const StepChunk& chunk = inputs.step->chunks()[static_cast<size_t>(task.chunk)];
  const int32_t first_token = task.part * tile_tokens_;
  const int32_t num_tokens = std::min(tile_tokens_, chunk.chunk.num_tokens() - first_token);
  const int32_t first_position = chunk.first_position + first_token;
  const int32_t num_context_tokens = first_position + num_tokens;
  const int32_t group = shape_.group_size();
  const int32_t num_rows = num_tokens * group;
  const KvHeadView kv = inputs.cache->Head(inputs.layer, task.kv_head);

  LoadQueries(inputs, task.kv_head, chunk.first_row + first_token, num_tokens, &workspace);
  std::fill_n(workspace.output.begin(), num_rows * padded_head_dim_, 0.0f);
  std::fill_n(workspace.max.begin(), num_rows, -std::numeric_limits<float>::infinity());
  std::fill_n(workspace.sum.begin(), num_rows, 0.0f);
  for (int32_t position = 0; position < num_context_tokens; position += kKvTile) {
    const int32_t num_positions = std::min(kKvTile, num_context_tokens - position);
    LoadKvTile(kv, chunk.chunk.block_table, position, num_positions, &workspace);
    for (int32_t row = 0; row < num_rows; ++row) {
      const int32_t end = first_position + row / group + 1 - position;
      workspace.ends[static_cast<size_t>(row)] = std::min(end, num_positions);
    }
    kernels_->prefill_tile({
        .queries = workspace.queries.data(),
        .ends = workspace.ends.data(),
        .num_rows = num_rows,
        .head_dim = shape_.head_dim,
        .padded_head_dim = padded_head_dim_,
        .num_positions = num_positions,
        .keys = workspace.keys.data(),
        .values = workspace.values.data(),
        .scores = workspace.scores.data(),
        .output = workspace.output.data(),
        .max = workspace.max.data(),
        .sum = workspace.sum.data(),
    });
  }
  StoreOutput(workspace, inputs, task.kv_head, chunk.first_row + first_token, num_tokens);
}

void PrefillAttention::LoadQueries(const AttentionInputs& inputs, int32_t kv_head,
                                   int32_t first_row, int32_t num_tokens,
                                   Workspace* workspace) const {
  const int64_t group_floats = int64_t{shape_.group_size()} * shape_.head_dim;
  for (int32_t token = 0; token < num_tokens; ++token) {
    const float* queries = inputs.queries.first + (first_row + token) * inputs.queries.row_stride +
                           kv_head * group_floats;
    std::copy_n(queries, group_floats, workspace->queries.data() + token * group_floats);
  }
}

void PrefillAttention::LoadKvTile(const KvHeadView& kv, absl::Span<const int32_t> block_table,
                                  int32_t first_position, int32_t num_positions,
                                  Workspace* workspace) const {
  for (int32_t offset = 0; offset < num_positions; offset += kBlockSize) {
    const int64_t block = block_table[static_cast<size_t>((first_position + offset) / kBlockSize)];
    const float* keys = kv.keys + block * kv.block_stride;
    kernels_->transpose_keys(keys, shape_.head_dim, workspace->keys.data() + offset);
    const float* values = keys + kv.value_offset;
    for (int32_t t = 0; t < std::min(kBlockSize, num_positions - offset); ++t) {
      std::copy_n(values + t * shape_.head_dim, shape_.head_dim,
                  workspace->values.data() + int64_t{offset + t} * padded_head_dim_);
    }
  }
}

void PrefillAttention::StoreOutput(const Workspace& workspace, const AttentionInputs& inputs,
                                   int32_t kv_head, int32_t first_row, int32_t num_tokens) const {
  const int32_t group = shape_.group_size();
  for (int32_t row = 0; row < num_tokens * group; ++row) {
    const float scale = 1.0f / workspace.sum[static_cast<size_t>(row)];
    const float* source = workspace.output.data() + int64_t{row} * padded_head_dim_;
    const int64_t head = int64_t{kv_head} * group + row % group;
    float* output = inputs.output.first + (first_row + row / group) * inputs.output.row_stride +
                    head * shape_.head_dim;
    for (int32_t d = 0; d < shape_.head_dim; ++d) output[d] = source[d] * scale;
  }
}

}  // namespace tidal::cpu
