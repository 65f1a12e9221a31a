#include "tests/engine/test_model.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "engine/block_manager.h"
#include "engine/check.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/cpu/cpu_backend.h"

namespace tidal {
namespace {

void CheckOk(const absl::Status& status) { TIDAL_CHECK(status.ok(), status.ToString().c_str()); }

}  // namespace

std::string SourceFolder() {
  const char* folder = std::getenv("TIDAL_SOURCE_DIR");
  return folder != nullptr ? folder : TIDAL_SOURCE_DIR;
}

TestModel LoadTestModel(const std::string& directory, const TestModelOptions& options) {
  absl::StatusOr<ModelConfig> config = LoadModelConfig(directory);
  CheckOk(config.status());
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = OpenCheckpoint(directory, *config);
  CheckOk(checkpoint.status());
  absl::StatusOr<LayerPlan> plan = LayerPlan::Create(config->shape.num_layers, options.plan);
  CheckOk(plan.status());
  absl::StatusOr<std::unique_ptr<Backend>> backend =
      options.create_backend != nullptr
          ? options.create_backend(config->shape, options.limits)
          : CreateCpuBackend(config->shape, options.limits, {.num_threads = options.num_threads});
  CheckOk(backend.status());
  CheckOk((*backend)->LoadWeights((*checkpoint)->weights()));
  CheckOk((*backend)->AllocateKvCache(options.num_blocks));
  auto runner = std::make_unique<BackendModelRunner>(backend->get(), *plan);
  return {*std::move(config), *std::move(plan), *std::move(backend), std::move(runner)};
}

TestSequence::TestSequence(TestModel* model, int32_t sampler_slot, int32_t first_block,
                           int32_t block_stride)
    : model_(model),
      sampler_slot_(sampler_slot),
      next_block_(first_block),
      block_stride_(block_stride) {
  const SamplingParams greedy{.temperature = 0.0f};
  CheckOk(model_->runner->BindSampler(sampler_slot_, greedy, {}, {}));
}

SequenceChunk TestSequence::MakeChunk(const std::vector<int32_t>& token_ids, AttentionMode mode,
                                      const Selection& selection) {
  num_computed_tokens_ += static_cast<int32_t>(token_ids.size());
  while (static_cast<int32_t>(block_table_.size()) < NumBlocksFor(num_computed_tokens_)) {
    block_table_.push_back(next_block_);
    next_block_ += block_stride_;
  }
  return {.token_ids = token_ids,
          .num_context_tokens = num_computed_tokens_,
          .block_table = block_table_,
          .mode = mode,
          .selection = selection,
          .sampler_slot = sampler_slot_,
          .samples = true};
}

std::vector<float> TestSequence::Run(const std::vector<int32_t>& token_ids, AttentionMode mode,
                                     const Selection& selection) {
  StepBatch batch;
  batch.chunks.push_back(MakeChunk(token_ids, mode, selection));
  CheckOk(model_->runner->Launch(batch));
  std::vector<SampledToken> sampled;
  CheckOk(model_->runner->Collect(&sampled));
  std::vector<float> logits;
  CheckOk(model_->backend->ReadLogits(&logits));
  TIDAL_CHECK(sampled.size() == 1 && sampled[0].token_id == ArgMax(logits),
              "greedy sampling draws the highest logit");
  return logits;
}

std::vector<float> TestSequence::Prefill(const std::vector<int32_t>& token_ids,
                                         int32_t chunk_size) {
  std::vector<float> logits;
  for (size_t begin = 0; begin < token_ids.size(); begin += static_cast<size_t>(chunk_size)) {
    const size_t end = std::min(token_ids.size(), begin + static_cast<size_t>(chunk_size));
    logits = Run({token_ids.begin() + static_cast<std::ptrdiff_t>(begin),
                  token_ids.begin() + static_cast<std::ptrdiff_t>(end)});
  }
  return logits;
}

int32_t ArgMax(const std::vector<float>& logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace tidal
