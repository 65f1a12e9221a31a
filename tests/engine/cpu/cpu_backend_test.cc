// What is the CPU backend's own: refusals, sizes, threads, and sequences that share the room for
// scores.

#include "engine/cpu/cpu_backend.h"

#include <functional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/backend/reference_model.h"

namespace tidal {
namespace {

using ::testing::HasSubstr;
using testing::MakeShape;

absl::Status CreateStatus(const ModelShape& shape, const StepLimits& limits) {
  return CreateCpuBackend(shape, limits, {.num_threads = 1}).status();
}

TEST(CpuBackendTest, RefusesShapesAndLimitsByName) {
  const StepLimits limits = {16, 2, 128};
  const auto refused = [&](const std::function<void(ModelShape*)>& change) {
    ModelShape shape = MakeShape(1, 4, 2, 64);
    change(&shape);
    const absl::Status status = CreateStatus(shape, limits);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(refused([](ModelShape* s) { s->num_layers = 0; }), HasSubstr("num_layers is 0"));
  EXPECT_THAT(refused([](ModelShape* s) { s->head_dim = 24; }), HasSubstr("head_dim is 24"));
  EXPECT_THAT(refused([](ModelShape* s) { s->num_kv_heads = 3; }), HasSubstr("num_kv_heads 3"));
  EXPECT_THAT(refused([](ModelShape* s) { s->rope_inverse_frequencies.pop_back(); }),
              HasSubstr("rope_inverse_frequencies is 31"));
  const ModelShape shape = MakeShape(1, 4, 2, 64);
  EXPECT_THAT(std::string(CreateStatus(shape, {0, 2, 128}).message()),
              HasSubstr("max_batch_tokens is 0"));
  EXPECT_THAT(std::string(CreateStatus(shape, {16, 0, 128}).message()),
              HasSubstr("max_batch_sequences is 0"));
}

TEST(CpuBackendTest, NamesBytesWhereTheWeightsDoNotFit) {
  ModelShape shape = MakeShape(1000, 4, 2, 64);
  shape.hidden_size = 1 << 17;
  auto backend = CreateCpuBackend(shape, {16, 2, 128}, {.num_threads = 1});
  ASSERT_TRUE(backend.ok());
  const absl::Status status = (*backend)->FillRandomWeights(1);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("the weights in float32 needs"));
}

class CpuBackendStepTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto backend = CreateCpuBackend(MakeShape(1, 4, 2, 64), {32, 2, 128}, {.num_threads = 2});
    ASSERT_TRUE(backend.ok());
    backend_ = *std::move(backend);
    ASSERT_TRUE(backend_->FillRandomWeights(1).ok());
    ASSERT_TRUE(backend_->AllocateKvCache(8).ok());
    chunk_.token_ids = absl::MakeConstSpan(tokens_).first(1);
    chunk_.num_context_tokens = 100;
    chunk_.block_table = blocks_;
    chunk_.samples = true;
  }
  std::string Refusal(absl::StatusCode code, const SequenceChunk& chunk) {
    const absl::Status status = backend_->BeginStep({.chunks = {chunk}});
    EXPECT_EQ(status.code(), code) << status;
    return std::string(status.message());
  }
  std::string Invalid(const std::function<void(SequenceChunk*)>& change) {
    SequenceChunk chunk = chunk_;
    change(&chunk);
    return Refusal(absl::StatusCode::kInvalidArgument, chunk);
  }

  std::unique_ptr<Backend> backend_;
  std::vector<int32_t> tokens_ = std::vector<int32_t>(40, 1);
  std::vector<int32_t> blocks_ = {0, 1, 2, 3, 4, 5, 6};
  SequenceChunk chunk_;
};

TEST_F(CpuBackendStepTest, RefusesBatchesOutOfRangeByName) {
  EXPECT_TRUE(backend_->BeginStep({.chunks = {chunk_}}).ok());
  EXPECT_THAT(Invalid([](SequenceChunk* c) { c->num_context_tokens = 129; }),
              HasSubstr("num_context_tokens is 129"));
  EXPECT_THAT(Invalid([](SequenceChunk* c) { c->sampler_slot = 2; }),
              HasSubstr("sampler_slot is 2, must be in 0..1"));
  EXPECT_THAT(Invalid([](SequenceChunk* c) { c->block_table.remove_suffix(1); }),
              HasSubstr("block_table has 6 blocks, 100 tokens need 7"));
  EXPECT_THAT(Invalid([this](SequenceChunk* c) { c->token_ids = tokens_; }),
              HasSubstr("number of tokens in a step is 40, must be in 1..32"));
  blocks_[3] = 8;
  EXPECT_THAT(Invalid([](SequenceChunk*) {}), HasSubstr("block id is 8"));
  blocks_[3] = 3;
  tokens_[0] = 203;
  EXPECT_THAT(Invalid([](SequenceChunk*) {}), HasSubstr("token id is 203"));
  EXPECT_EQ(backend_->BeginStep({}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(backend_->BeginStep({.chunks = {chunk_, chunk_, chunk_}}).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(CpuBackendStepTest, RefusesSelectionsOutOfRangeByName) {
  chunk_.mode = AttentionMode::kTidal;
  chunk_.selection = {SelectionScope::kKvHead, 50, 10, 40};
  EXPECT_TRUE(backend_->BeginStep({.chunks = {chunk_}}).ok());
  EXPECT_THAT(Invalid([](SequenceChunk* c) { c->selection.token_budget = 100; }),
              HasSubstr("token_budget is 100, must be in 1..99"));
  EXPECT_THAT(Invalid([](SequenceChunk* c) { c->selection.num_sink_tokens = 11; }),
              HasSubstr("num_sink_tokens is 11, must be in 0..10"));
  EXPECT_THAT(Invalid([](SequenceChunk* c) { c->selection.num_recent_tokens = 51; }),
              HasSubstr("num_recent_tokens is 51"));
  EXPECT_THAT(
      Invalid([this](SequenceChunk* c) { c->token_ids = absl::MakeConstSpan(tokens_).first(2); }),
      HasSubstr("must be in 1..1"));
}

TEST_F(CpuBackendStepTest, ServesEveryModeAndScope) {
  for (const AttentionMode mode :
       {AttentionMode::kFull, AttentionMode::kTidal, AttentionMode::kQuest}) {
    for (const SelectionScope scope :
         {SelectionScope::kQueryHead, SelectionScope::kKvHead, SelectionScope::kLayer}) {
      EXPECT_TRUE(backend_->CheckAttention(mode, {.scope = scope}).ok());
    }
  }
}

TEST_F(CpuBackendStepTest, RefusesSparseBeforeSelect) {
  chunk_.mode = AttentionMode::kTidal;
  chunk_.selection.token_budget = 50;
  ASSERT_TRUE(backend_->BeginStep({.chunks = {chunk_}}).ok());
  ASSERT_TRUE(backend_->Embed().ok());
  ASSERT_TRUE(backend_->AttentionInput(0).ok());
  AttentionPass sparse;
  sparse.kind_of_mode = {AttentionKind::kFull, AttentionKind::kSparse, AttentionKind::kQuest};
  EXPECT_EQ(backend_->Attention(0, sparse).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(CpuBackendStepTest, RefusesTheLastTokenOfASlotWithoutOne) {
  tokens_[0] = kLastSampledToken;
  ASSERT_TRUE(backend_->BeginStep({.chunks = {chunk_}}).ok());
  EXPECT_EQ(backend_->Embed().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(CpuBackendStepTest, AccountsForItsMemory) {
  // K and V of 2 heads of 64 for 16 tokens in one layer, and K's minima and maxima; 4 bytes each.
  EXPECT_EQ(backend_->kv_block_size_bytes(), 2 * 2 * 64 * 16 * 4 + 2 * 2 * 64 * 4);
  const MemoryUse use = backend_->memory_use();
  EXPECT_EQ(use.kv_cache_bytes, 8 * backend_->kv_block_size_bytes());
  // At least the matrices: q, k, v, output, gate, up, down, embedding and LM head.
  EXPECT_GE(use.weights_bytes, 4 * 72 * (256 + 128 + 128 + 256 + 3 * 100 + 2 * 203));
  EXPECT_GT(use.workspace_bytes, 0);
  EXPECT_EQ(backend_->AllocateKvCache(8).code(), absl::StatusCode::kInvalidArgument);
}

// More tokens in the batch than the cache holds, because sequences share blocks: their select
// layers take turns.
TEST(CpuBackendSharingTest, SelectsForMoreTokensThanTheCacheHolds) {
  const ModelShape shape = MakeShape(1, 4, 2, 64);
  auto created = CreateCpuBackend(shape, {128, 5, 128}, {.num_threads = 2});
  ASSERT_TRUE(created.ok());
  Backend& backend = **created;
  ASSERT_TRUE(backend.FillRandomWeights(1).ok());
  ASSERT_TRUE(backend.AllocateKvCache(8).ok());
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < 128; ++i) tokens.push_back(i * 31 % 203);
  const std::vector<int32_t> blocks = {3, 1, 7, 5, 0, 2, 4, 6};
  SequenceChunk prefill;
  prefill.token_ids = tokens;
  prefill.num_context_tokens = 128;
  prefill.block_table = blocks;
  std::vector<SampledToken> sampled;
  ASSERT_TRUE(backend.BeginStep({.chunks = {prefill}}).ok());
  ASSERT_TRUE(backend.Embed().ok());
  ASSERT_TRUE(backend.AttentionInput(0).ok());
  ASSERT_TRUE(backend.EndStep(&sampled).ok());

  AttentionPass select;
  select.kind_of_mode = {AttentionKind::kFull, AttentionKind::kSelect, AttentionKind::kQuest};
  SequenceChunk decode = prefill;
  decode.token_ids = absl::MakeConstSpan(tokens).last(1);
  decode.mode = AttentionMode::kTidal;
  decode.selection.token_budget = 20;
  StepBatch batch;
  for (int32_t slot = 0; slot < 5; ++slot) {
    decode.sampler_slot = slot;
    batch.chunks.push_back(decode);
  }
  ASSERT_TRUE(backend.BeginStep(batch).ok());
  ASSERT_TRUE(backend.Embed().ok());
  ASSERT_TRUE(backend.AttentionInput(0).ok());
  ASSERT_TRUE(backend.Attention(0, select).ok());
  std::vector<std::vector<int32_t>> first;
  ASSERT_TRUE(backend.ReadSelection(0, &first).ok());
  EXPECT_EQ(first.size(), 4u);
  for (int32_t chunk = 1; chunk < 5; ++chunk) {
    std::vector<std::vector<int32_t>> positions;
    ASSERT_TRUE(backend.ReadSelection(chunk, &positions).ok());
    EXPECT_EQ(positions, first);
  }
  EXPECT_EQ(backend.ReadSelection(5, &first).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace tidal
