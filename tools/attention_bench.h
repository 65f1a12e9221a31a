// Times attention alone, one kind of layer at a time, through the stages of the seam. A step runs
// the kind in every layer, each on its own KV; what the same step takes without it is subtracted,
// and the rest is shared among the layers.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/backend/attention.h"
#include "engine/model_loader.h"
#include "tools/bench_report.h"
#include "tools/bench_sequences.h"

namespace tidal {

struct AttentionCase {
  enum class Kind : uint8_t {
    kFull,
    kSelect,   // scores and selection included
    kSparse,   // after one select layer, which is subtracted
    kPrefill,  // a whole prompt of num_context_tokens, in chunks
  } kind = Kind::kFull;
  int32_t num_streams = 1;
  int32_t num_context_tokens = 2048;
  Selection selection = {};  // for kSelect and kSparse
};

class AttentionBench {
 public:
  // `read_bandwidth` in bytes a second gives the floor. `model` must outlive this object.
  AttentionBench(ServingModel* model, double read_bandwidth)
      : model_(model), read_bandwidth_(read_bandwidth), sequences_(model) {}

  // `num_runs` measurements of the kind and of the step without it, in turn, after some of each
  // that do not count.
  absl::StatusOr<AttentionResult> Run(const AttentionCase& attention_case, int num_runs);

 private:
  // The kinds of attention to run, a layer after the other.
  using Kinds = std::vector<AttentionKind>;

  absl::StatusOr<double> TimeStep(const StepBatch& batch, const Kinds& kinds);  // seconds
  absl::StatusOr<double> TimeDecode(const AttentionCase& attention_case, const Kinds& kinds);
  absl::StatusOr<double> TimePrefill(const AttentionCase& attention_case, const Kinds& kinds);

  ServingModel* model_;
  double read_bandwidth_;
  BenchSequences sequences_;
};

}  // namespace tidal
