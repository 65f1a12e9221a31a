// What the two halves of the attention stage share. Plain values.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/backend/attention.h"
#include "engine/cpu/kv_cache.h"
#include "engine/cpu/matmul.h"
#include "engine/cpu/step_tables.h"

namespace tidal::cpu {

// One layer's attention. Queries are scaled by 1 / sqrt(head_dim).
struct AttentionInputs {
  const StepTables* step;
  const KvCache* cache;
  int32_t layer;
  ConstRows queries;  // [num_rows][num_query_heads][head_dim]
  Rows output;        // the same
};

// A piece of a chunk's work for one KV head, or for all where it is a choice or a union.
struct AttentionTask {
  int32_t chunk;
  AttentionKind kind;
  bool prefill;
  int32_t kv_head;
  int32_t part;  // tile of queries, run of positions, or query head of a choice
};

// A stage's tasks: all of one list are done before the next list's begin.
struct AttentionTasks {
  std::vector<AttentionTask> choices;  // quest: the blocks of a query head
  std::vector<AttentionTask> runs;     // prefill tiles and decode runs
  std::vector<AttentionTask> merges;   // one for each decode and KV head
  std::vector<AttentionTask> unions;   // scope layer: the positions of a select layer
};

}  // namespace tidal::cpu
