// A step as a list of stages, and the graphs that replay such lists. Engine thread only.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "engine/backend/attention.h"

namespace tidal::cuda {

// A call of one stage of the seam.
struct Stage {
  enum class Kind : uint8_t {
    kEmbed,
    kAttentionInput,
    kAttention,
    kAttentionOutput,
    kMlp,
    kSample
  };
  Kind kind = Kind::kEmbed;
  int32_t layer = 0;
  AttentionPass pass = {};  // of kAttention

  friend auto operator<=>(const Stage& a, const Stage& b) {
    return std::tie(a.kind, a.layer, a.pass.kind_of_mode) <=>
           std::tie(b.kind, b.layer, b.pass.kind_of_mode);
  }
  friend bool operator==(const Stage& a, const Stage& b) { return (a <=> b) == 0; }
};

using StepProgram = std::vector<Stage>;

// Sets of selected positions that a scope has.
int32_t NumSets(SelectionScope scope, int32_t num_query_heads, int32_t num_kv_heads);

// What the launches of a step depend on beside its stages.
struct StepTraits {
  int32_t num_rows = 0;      // of launches
  bool has_prefill = false;  // a chunk of more than one token
  uint8_t decode_modes = 0;  // bit m: a decode of AttentionMode m
  uint8_t tidal_scopes = 0;  // bit s: a decode of mode kTidal with SelectionScope s

  void AddDecode(AttentionMode mode, SelectionScope scope);
  bool has_decode() const { return decode_modes != 0; }
  // Whether a decode has this kind in a layer.
  bool HasDecodeOf(const AttentionPass& pass, AttentionKind kind) const;
  // Sets that a decode has at most; at least 1.
  int32_t MaxSets(int32_t num_query_heads, int32_t num_kv_heads) const;

  auto operator<=>(const StepTraits&) const = default;
};

// Rows of the graph that serves a step of `num_rows` decodes: each number up to 8 has its own, then
// they are multiples of 8, from 64 on of 32, up to `max_rows`.
int32_t RowBucket(int32_t num_rows, int32_t max_rows);

// The graphs, one for each program and traits that have come twice: the first time is launched
// kernel by kernel, since what a kernel needs the first time cannot all be recorded.
class StepGraphs {
 public:
  struct Key {
    StepTraits traits;
    StepProgram program;
    auto operator<=>(const Key&) const = default;
  };

  // Launches the step; `run` enqueues its kernels on the stream, and is called at most once.
  absl::Status Launch(const Key& key, cudaStream_t stream, absl::FunctionRef<absl::Status()> run);

 private:
  struct Destroy {
    void operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }
  };
  using Executable = std::unique_ptr<std::remove_pointer_t<cudaGraphExec_t>, Destroy>;

  static absl::Status Record(cudaStream_t stream, absl::FunctionRef<absl::Status()> run,
                             Executable* executable);

  std::map<Key, Executable> graphs_;  // null until the second time
};

}  // namespace tidal::cuda
