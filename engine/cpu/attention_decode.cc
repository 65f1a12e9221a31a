#include "engine/cpu/attention_decode.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "engine/backend/status_macros.h"
#include "engine/cpu/selection.h"

namespace tidal::cpu {
namespace {

// Enough positions to outweigh a task's cost, few enough to share one sequence between threads;
// longer contexts take longer runs, so that the partial results stay small.
constexpr int32_t kMinRunLength = 512;
constexpr int32_t kMaxRuns = 64;
constexpr int32_t kSparseRunLength = 256;
// Quest takes whole blocks, those of sinks and recent tokens beyond its budget where need be.
constexpr int32_t kMaxSelected = kMaxTokenBudget + 4 * kBlockSize;

int32_t RoundUp(int32_t value, int32_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

int32_t FullRunLength(int32_t num_context_tokens) {
  return std::max(kMinRunLength, RoundUp((num_context_tokens + kMaxRuns - 1) / kMaxRuns, 64));
}

}  // namespace

DecodeAttention::DecodeAttention(const ModelShape& shape, const StepLimits& limits,
                                 const Kernels* kernels, int num_threads)
    : shape_(shape),
      limits_(limits),
      kernels_(kernels),
      max_run_length_(FullRunLength(limits.max_model_len)),
      max_runs_(std::clamp((limits.max_model_len + kSparseRunLength - 1) / kSparseRunLength, 1,
                           kMaxRuns)),
      max_selected_(std::min(kMaxSelected, RoundUp(limits.max_model_len, kBlockSize))),
      chunk_states_(static_cast<size_t>(limits.max_batch_sequences)),
      thread_scratch_(static_cast<size_t>(num_threads)) {}

void DecodeAttention::LayOut(Arena* arena) {
  const int64_t heads = int64_t{limits_.max_batch_sequences} * shape_.num_query_heads;
  partial_outputs_ = arena->Take<float>(heads * max_runs_ * shape_.head_dim);
  partial_max_ = arena->Take<float>(heads * max_runs_);
  partial_sum_ = arena->Take<float>(heads * max_runs_);
  selected_ = arena->Take<int32_t>(heads * max_selected_);
  for (absl::Span<float>& scratch : thread_scratch_) {
    scratch = arena->Take<float>(int64_t{shape_.group_size()} * max_run_length_);
  }
}

absl::Status DecodeAttention::AllocateScores(int64_t num_cache_tokens) {
  // Sequences that share blocks may have more tokens than the cache: then they take turns.
  const int64_t longest = RoundUp(limits_.max_model_len, kBlockSize);
  scores_capacity_tokens_ =
      std::max(longest, std::min(num_cache_tokens, longest * limits_.max_batch_sequences));
  const int64_t num_scores = scores_capacity_tokens_ * shape_.num_query_heads;
  Arena count;
  count.Take<float>(num_scores);
  TIDAL_ASSIGN_OR_RETURN(scores_arena_, Arena::Allocate(count.used_bytes(), /*commit=*/false,
                                                        "the workspace for attention scores"));
  scores_ = scores_arena_.Take<float>(num_scores);
  return absl::OkStatus();
}

void DecodeAttention::ForgetSelections() {
  for (ChunkState& state : chunk_states_) state.num_sets = 0;
}

bool DecodeAttention::ReserveScores(int32_t index, const SequenceChunk& chunk, AttentionKind kind) {
  // Quest has a score for each block alone.
  const int32_t num_scores =
      kind == AttentionKind::kQuest
          ? QuestBlocksOf(chunk.selection, chunk.num_context_tokens).num_blocks
          : chunk.num_context_tokens;
  const int64_t stride = RoundUp(num_scores, kBlockSize);
  if (num_reserved_tokens_ + stride > scores_capacity_tokens_) return false;
  ChunkState& state = chunk_states_[static_cast<size_t>(index)];
  state.first_score = num_reserved_tokens_ * shape_.num_query_heads;
  state.score_stride = stride;
  num_reserved_tokens_ += stride;
  return true;
}

absl::Status DecodeAttention::AddTasks(const SequenceChunk& chunk, int32_t index,
                                       AttentionKind kind, AttentionTasks* tasks) {
  ChunkState& state = chunk_states_[static_cast<size_t>(index)];
  if (kind == AttentionKind::kSparse && state.num_sets == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("chunk ", index, " has a sparse layer before its first select layer"));
  }
  if (KeepsScores(kind)) {
    const bool quest = kind == AttentionKind::kQuest;
    state.scope = quest ? SelectionScope::kQueryHead : chunk.selection.scope;
    state.num_selected = quest ? NumPositions(chunk, kind) : chunk.selection.token_budget;
    state.num_sets = state.scope == SelectionScope::kQueryHead ? shape_.num_query_heads
                     : state.scope == SelectionScope::kKvHead  ? shape_.num_kv_heads
                                                               : 1;
  }
  if (kind == AttentionKind::kQuest) {
    for (int32_t head = 0; head < shape_.num_query_heads; ++head) {
      tasks->choices.push_back({index, kind, /*prefill=*/false, 0, head});
    }
  }
  const int32_t num_runs = NumRuns(chunk, kind);
  for (int32_t run = 0; run < num_runs; ++run) {
    for (int32_t kv_head = 0; kv_head < shape_.num_kv_heads; ++kv_head) {
      tasks->runs.push_back({index, kind, /*prefill=*/false, kv_head, run});
    }
  }
  for (int32_t kv_head = 0; kv_head < shape_.num_kv_heads; ++kv_head) {
    tasks->merges.push_back({index, kind, /*prefill=*/false, kv_head, 0});
  }
  if (kind == AttentionKind::kSelect && state.scope == SelectionScope::kLayer) {
    tasks->unions.push_back({index, kind, /*prefill=*/false, 0, 0});
  }
  return absl::OkStatus();
}

int32_t DecodeAttention::NumPositions(const SequenceChunk& chunk, AttentionKind kind) const {
  if (kind == AttentionKind::kSparse) return chunk.selection.token_budget;
  if (kind != AttentionKind::kQuest) return chunk.num_context_tokens;
  return QuestBlocksOf(chunk.selection, chunk.num_context_tokens)
      .num_positions(chunk.num_context_tokens);
}

int32_t DecodeAttention::RunLength(const SequenceChunk& chunk, AttentionKind kind) const {
  const bool gathers = kind == AttentionKind::kSparse || kind == AttentionKind::kQuest;
  return gathers ? kSparseRunLength : FullRunLength(chunk.num_context_tokens);
}

int32_t DecodeAttention::NumRuns(const SequenceChunk& chunk, AttentionKind kind) const {
  const int32_t run_length = RunLength(chunk, kind);
  return (NumPositions(chunk, kind) + run_length - 1) / run_length;
}

int64_t DecodeAttention::PartialIndex(int32_t chunk, int32_t head, int32_t run) const {
  const int32_t group = shape_.group_size();
  const int64_t kv_head = int64_t{chunk} * shape_.num_kv_heads + head / group;
  return (kv_head * max_runs_ + run) * group + head % group;
}

float DecodeAttention::Partial(absl::Span<const float> of_runs, int32_t chunk, int32_t head,
                               int32_t run) const {
  return of_runs[static_cast<size_t>(PartialIndex(chunk, head, run))];
}

absl::Span<float> DecodeAttention::HeadScores(int32_t chunk, int32_t head) const {
  const ChunkState& state = chunk_states_[static_cast<size_t>(chunk)];
  return scores_.subspan(static_cast<size_t>(state.first_score + head * state.score_stride),
                         static_cast<size_t>(state.score_stride));
}

absl::Span<int32_t> DecodeAttention::SelectedPositions(int32_t chunk, int32_t set) const {
  const int64_t index = (int64_t{chunk} * shape_.num_query_heads + set) * max_selected_;
  return selected_.subspan(static_cast<size_t>(index), static_cast<size_t>(max_selected_));
}

int32_t DecodeAttention::SetOf(const ChunkState& state, int32_t head) const {
  if (state.scope == SelectionScope::kQueryHead) return head;
  return state.scope == SelectionScope::kKvHead ? head / shape_.group_size() : 0;
}

void DecodeAttention::Choose(const AttentionInputs& inputs, const AttentionTask& task) {
  const StepChunk& chunk = inputs.step->chunks()[static_cast<size_t>(task.chunk)];
  const int32_t head = task.part;
  const int32_t num_context_tokens = chunk.chunk.num_context_tokens;
  const QuestBlocks blocks = QuestBlocksOf(chunk.chunk.selection, num_context_tokens);
  const absl::Span<int32_t> positions = SelectedPositions(task.chunk, head);
  if (blocks.num_chosen == blocks.num_blocks) {
    std::iota(positions.begin(), positions.begin() + num_context_tokens, 0);
    return;
  }
  const absl::Span<float> scores =
      HeadScores(task.chunk, head).first(static_cast<size_t>(blocks.num_blocks));
  kernels_->score_blocks({
      .query = inputs.queries.first + chunk.first_row * inputs.queries.row_stride +
               int64_t{head} * shape_.head_dim,
      .head_dim = shape_.head_dim,
      .bounds = inputs.cache->Bounds(inputs.layer, head / shape_.group_size()),
      .block_stride = inputs.cache->bounds_block_floats(),
      .block_table = chunk.chunk.block_table.data(),
      .num_blocks = blocks.num_blocks,
      .scores = scores.data(),
  });
  // The chosen blocks' ids lie at the end of the room, which no block's positions reach before its
  // id is read: there is room for all their tokens.
  int32_t* const end = positions.data() + positions.size();
  int32_t* const ids = end - blocks.num_chosen;
  SelectPositions(*kernels_,
                  {.token_budget = blocks.num_chosen,
                   .num_sink_tokens = blocks.num_sinks,
                   .num_recent_tokens = blocks.num_recents},
                  scores, ids);
  int32_t* next = positions.data();
  for (int32_t i = 0; i < blocks.num_chosen; ++i) {
    const int32_t first = ids[i] * kBlockSize;
    const int32_t count = std::min(kBlockSize, num_context_tokens - first);
    std::iota(next, next + count, first);
    next += count;
  }
}

void DecodeAttention::Run(const AttentionInputs& inputs, const AttentionTask& task, int thread) {
  const StepChunk& chunk = inputs.step->chunks()[static_cast<size_t>(task.chunk)];
  const ChunkState& state = chunk_states_[static_cast<size_t>(task.chunk)];
  const bool gathers = task.kind == AttentionKind::kSparse || task.kind == AttentionKind::kQuest;
  const bool select = task.kind == AttentionKind::kSelect;
  const int32_t run_length = RunLength(chunk.chunk, task.kind);
  const int32_t begin = task.part * run_length;
  const int32_t length = std::min(run_length, NumPositions(chunk.chunk, task.kind) - begin);
  // Heads that attend the same positions share a pass over them.
  const int32_t group = shape_.group_size();
  const bool set_per_head = gathers && state.scope == SelectionScope::kQueryHead;
  const int32_t num_heads = set_per_head ? 1 : group;
  float* scratch = thread_scratch_[static_cast<size_t>(thread)].data();
  for (int32_t i = 0; i < group; i += num_heads) {
    const int32_t head = task.kv_head * group + i;
    const int64_t partial = PartialIndex(task.chunk, head, task.part);
    kernels_->decode_run({
        .queries = inputs.queries.first + chunk.first_row * inputs.queries.row_stride +
                   int64_t{head} * shape_.head_dim,
        .num_heads = num_heads,
        .head_dim = shape_.head_dim,
        .kv = inputs.cache->Head(inputs.layer, task.kv_head),
        .block_table = chunk.chunk.block_table.data(),
        .first_position = begin,
        .positions =
            gathers ? SelectedPositions(task.chunk, SetOf(state, head)).data() + begin : nullptr,
        .num_positions = length,
        .scores = select ? HeadScores(task.chunk, head).data() + begin : scratch,
        .scores_stride = select ? state.score_stride : max_run_length_,
        .probabilities = scratch,
        .probabilities_stride = max_run_length_,
        .output = partial_outputs_.data() + partial * shape_.head_dim,
        .max = partial_max_.data() + partial,
        .sum = partial_sum_.data() + partial,
    });
  }
}

void DecodeAttention::Merge(const AttentionInputs& inputs, const AttentionTask& task) {
  const StepChunk& chunk = inputs.step->chunks()[static_cast<size_t>(task.chunk)];
  const int32_t num_runs = NumRuns(chunk.chunk, task.kind);
  float* output = inputs.output.first + chunk.first_row * inputs.output.row_stride;
  const int32_t group = shape_.group_size();
  const bool select = task.kind == AttentionKind::kSelect;
  const SelectionScope scope = chunk.chunk.selection.scope;
  const bool pooled = select && scope == SelectionScope::kKvHead;
  const int32_t first_head = task.kv_head * group;
  for (int32_t head = first_head; head < first_head + group; ++head) {
    const Softmax softmax =
        MergeHead(task.chunk, head, num_runs, output + int64_t{head} * shape_.head_dim);
    const absl::Span<float> scores = select ? HeadScores(task.chunk, head) : absl::Span<float>();
    if (pooled) {
      // The first head's scores turn into the group's sums of probabilities.
      kernels_->pool_probabilities(scores.data(), chunk.chunk.num_context_tokens, softmax.max,
                                   1.0f / softmax.sum, /*accumulate=*/head != first_head,
                                   HeadScores(task.chunk, first_head).data());
    } else if (select && scope == SelectionScope::kLayer) {
      // Scores turn into probabilities; Unite goes on when all heads have theirs.
      kernels_->pool_probabilities(scores.data(), chunk.chunk.num_context_tokens, softmax.max,
                                   1.0f / softmax.sum, /*accumulate=*/false, scores.data());
    } else if (select) {
      SelectPositions(*kernels_, chunk.chunk.selection,
                      scores.first(static_cast<size_t>(chunk.chunk.num_context_tokens)),
                      SelectedPositions(task.chunk, head).data());
    }
  }
  if (pooled) {
    SelectPositions(*kernels_, chunk.chunk.selection,
                    HeadScores(task.chunk, first_head)
                        .first(static_cast<size_t>(chunk.chunk.num_context_tokens)),
                    SelectedPositions(task.chunk, task.kv_head).data());
  }
}

void DecodeAttention::Unite(const AttentionInputs& inputs, const AttentionTask& task) {
  const StepChunk& chunk = inputs.step->chunks()[static_cast<size_t>(task.chunk)];
  const int32_t num_context_tokens = chunk.chunk.num_context_tokens;
  const absl::Span<float> most = HeadScores(task.chunk, 0);
  for (int32_t head = 1; head < shape_.num_query_heads; ++head) {
    kernels_->max_into(HeadScores(task.chunk, head).data(), num_context_tokens, most.data());
  }
  SelectPositions(*kernels_, chunk.chunk.selection,
                  most.first(static_cast<size_t>(num_context_tokens)),
                  SelectedPositions(task.chunk, 0).data());
}

DecodeAttention::Softmax DecodeAttention::MergeHead(int32_t chunk, int32_t head, int32_t num_runs,
                                                    float* output) const {
  Softmax softmax = {-std::numeric_limits<float>::infinity(), 0.0f};
  for (int32_t run = 0; run < num_runs; ++run) {
    softmax.max = std::max(softmax.max, Partial(partial_max_, chunk, head, run));
  }
  std::fill_n(output, shape_.head_dim, 0.0f);
  for (int32_t run = 0; run < num_runs; ++run) {
    const float weight = std::exp(Partial(partial_max_, chunk, head, run) - softmax.max);
    softmax.sum += Partial(partial_sum_, chunk, head, run) * weight;
    const float* partial =
        partial_outputs_.data() + PartialIndex(chunk, head, run) * shape_.head_dim;
    for (int32_t d = 0; d < shape_.head_dim; ++d) output[d] += partial[d] * weight;
  }
  const float scale = 1.0f / softmax.sum;
  for (int32_t d = 0; d < shape_.head_dim; ++d) output[d] *= scale;
  return softmax;
}

absl::Status DecodeAttention::ReadSelection(int32_t chunk,
                                            std::vector<std::vector<int32_t>>* positions) const {
  if (chunk < 0 || chunk >= limits_.max_batch_sequences) {
    return absl::InvalidArgumentError(absl::StrCat("chunk index is ", chunk, ", must be in 0..",
                                                   limits_.max_batch_sequences - 1));
  }
  const ChunkState& state = chunk_states_[static_cast<size_t>(chunk)];
  if (state.num_sets == 0) {
    return absl::FailedPreconditionError(absl::StrCat("chunk ", chunk, " has no selection"));
  }
  positions->clear();
  for (int32_t set = 0; set < state.num_sets; ++set) {
    const absl::Span<int32_t> selected =
        SelectedPositions(chunk, set).first(static_cast<size_t>(state.num_selected));
    positions->emplace_back(selected.begin(), selected.end());
  }
  return absl::OkStatus();
}

}  // namespace tidal::cpu
