// What the two halves of the attention stage share. Plain values.
#pragma once

#include <cstdint>

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

// A piece of a chunk's work for one KV head.
struct AttentionTask {
  int32_t chunk;
  AttentionKind kind;
  bool prefill;
  int32_t kv_head;
  int32_t part;  // tile of queries, or run of positions
};

}  // namespace tidal::cpu
