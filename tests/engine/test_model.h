// A real checkpoint on a backend, for tests of the whole model: loads it, and runs chunks of
// sequences through the layer loop without an engine.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/backend/backend.h"
#include "engine/backend_model_runner.h"
#include "engine/checkpoint/model_config.h"
#include "engine/layer_plan.h"

namespace tidal {

struct TestModelOptions {
  StepLimits limits = {.max_batch_tokens = 512, .max_batch_sequences = 16, .max_model_len = 2048};
  int32_t num_blocks = 512;
  LayerPlanOptions plan = {};
  int32_t num_threads = 2;
  // Makes the backend; null: the CPU backend with num_threads.
  std::function<absl::StatusOr<std::unique_ptr<Backend>>(const ModelShape&, const StepLimits&)>
      create_backend = nullptr;
};

struct TestModel {
  ModelConfig config;
  LayerPlan plan;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<BackendModelRunner> runner;
};

// Aborts the test where the checkpoint cannot be loaded.
TestModel LoadTestModel(const std::string& directory, const TestModelOptions& options = {});

// One sequence on a TestModel, with blocks of its own.
class TestSequence {
 public:
  // Blocks first_block, first_block + block_stride, ...
  TestSequence(TestModel* model, int32_t sampler_slot, int32_t first_block,
               int32_t block_stride = 1);

  // Computes `token_ids` as one chunk; returns the logits of the last, [vocab].
  std::vector<float> Run(const std::vector<int32_t>& token_ids,
                         AttentionMode mode = AttentionMode::kFull,
                         const Selection& selection = {});

  // Likewise, in chunks of at most `chunk_size` tokens.
  std::vector<float> Prefill(const std::vector<int32_t>& token_ids, int32_t chunk_size);

  // The chunk that Run would compute. `token_ids` must outlive it. Counts them as computed.
  SequenceChunk MakeChunk(const std::vector<int32_t>& token_ids, AttentionMode mode,
                          const Selection& selection);

 private:
  TestModel* model_;
  int32_t sampler_slot_;
  int32_t next_block_;
  int32_t block_stride_;
  int32_t num_computed_tokens_ = 0;
  std::vector<int32_t> block_table_;
};

// Where the repository is: TIDAL_SOURCE_DIR of the environment, or where this was built.
std::string SourceFolder();

// The id with the highest logit.
int32_t ArgMax(const std::vector<float>& logits);

}  // namespace tidal
