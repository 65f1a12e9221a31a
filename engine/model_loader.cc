#include "engine/model_loader.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/backend/status_macros.h"
#include "engine/backend_model_runner.h"
#include "engine/block_manager.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/cpu/cpu_backend.h"
#include "engine/cuda_plugin.h"
#include "engine/layer_plan_file.h"

namespace tidal {
namespace {

constexpr int32_t kDefaultCpuBatchTokens = 512;
constexpr int32_t kDefaultCudaBatchTokens = 4096;
constexpr double kDefaultCpuMemoryFraction = 0.5;
constexpr double kDefaultCudaMemoryFraction = 0.9;
constexpr uint64_t kDummyWeightsSeed = 1;

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadModelTokenizer(const ModelLoadOptions& options,
                                                              const ModelConfig& config) {
  if (options.load_format == LoadFormat::kDummy && options.dummy_config.has_value()) return nullptr;
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = LoadTokenizer(options.model_path);
  if (!tokenizer.ok()) {
    const bool can_do_without =
        options.load_format == LoadFormat::kDummy && absl::IsNotFound(tokenizer.status());
    if (can_do_without) return nullptr;
    return tokenizer.status();
  }
  if ((*tokenizer)->vocab_size() > config.shape.vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.model_path, ": the tokenizer has ", (*tokenizer)->vocab_size(),
                     " tokens, more than the model's vocab_size of ", config.shape.vocab_size));
  }
  return tokenizer;
}

absl::StatusOr<std::unique_ptr<Backend>> CreateBackend(const ModelLoadOptions& options,
                                                       const ModelConfig& config, Device device,
                                                       const StepLimits& limits) {
  if (device == Device::kCuda) {
    const bool is_half = config.checkpoint_dtype == DType::kFloat16;
    return CreateCudaBackend(
        config.shape, limits,
        {.memory_fraction =
             options.memory_fraction > 0.0 ? options.memory_fraction : kDefaultCudaMemoryFraction,
         .compute_type = is_half ? DType::kFloat16 : DType::kBFloat16});
  }
  const auto num_cores = static_cast<int32_t>(std::max(1u, std::thread::hardware_concurrency()));
  const int32_t num_threads = options.cpu_threads > 0 ? options.cpu_threads : num_cores;
  return CreateCpuBackend(config.shape, limits, {.num_threads = num_threads});
}

absl::Status FillWeights(const ModelLoadOptions& options, const ModelConfig& config,
                         Backend* backend) {
  if (options.load_format == LoadFormat::kDummy) {
    return backend->FillRandomWeights(kDummyWeightsSeed);
  }
  TIDAL_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint,
                         OpenCheckpoint(options.model_path, config));
  return backend->LoadWeights(checkpoint->weights());
}

// The longest context to serve before the KV cache has its say.
absl::StatusOr<int32_t> WantedModelLen(const ModelLoadOptions& options, const ModelConfig& config) {
  const int32_t longest = config.sliding_window > 0
                              ? std::min(config.max_position_embeddings, config.sliding_window)
                              : config.max_position_embeddings;
  if (options.max_model_len <= longest) {
    return options.max_model_len > 0 ? options.max_model_len : longest;
  }
  const char* const limit = longest < config.max_position_embeddings
                                ? "its sliding window, which is not served beyond that"
                                : "its max_position_embeddings";
  return absl::InvalidArgumentError(absl::StrCat("max_model_len: ", options.max_model_len,
                                                 " is more than the checkpoint's ", longest, ", ",
                                                 limit));
}

// Blocks that the memory holds, and no more than the running requests could ever fill.
absl::StatusOr<int32_t> ChooseNumBlocks(const ModelLoadOptions& options, Device device,
                                        const Backend& backend, int32_t wanted_model_len) {
  const int64_t available_bytes = backend.AvailableMemoryBytes();
  const double fraction = device == Device::kCuda         ? 1.0  // the backend has applied it
                          : options.memory_fraction > 0.0 ? options.memory_fraction
                                                          : kDefaultCpuMemoryFraction;
  const int64_t budget_bytes =
      options.kv_cache_memory_bytes > 0
          ? options.kv_cache_memory_bytes
          : static_cast<int64_t>(fraction * static_cast<double>(available_bytes));
  const int64_t block_bytes = backend.kv_block_size_bytes();
  const int64_t most_useful =
      int64_t{NumBlocksFor(wanted_model_len)} * options.max_running_requests;
  const int64_t num_blocks = std::min(budget_bytes / block_bytes, most_useful);
  const int32_t least_model_len = options.max_model_len > 0 ? options.max_model_len : kBlockSize;
  if (num_blocks < NumBlocksFor(least_model_len) || budget_bytes > available_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the KV cache does not fit: a context of ", least_model_len, " tokens needs ",
        NumBlocksFor(least_model_len) * block_bytes, " bytes; the cache may have ", budget_bytes,
        " of ", available_bytes, " bytes available; the longest context that fits is ",
        std::min(budget_bytes, available_bytes) / block_bytes * kBlockSize, " tokens"));
  }
  return static_cast<int32_t>(num_blocks);
}

struct SourcedPlan {
  LayerPlan plan;
  std::string source;
};

absl::StatusOr<SourcedPlan> ChoosePlan(const ModelLoadOptions& options, int32_t num_layers) {
  const LayerPlanOptions& wanted = options.layer_plan;
  if (wanted.full_layers.has_value() || wanted.selection_layers.has_value()) {
    TIDAL_ASSIGN_OR_RETURN(LayerPlan plan, LayerPlan::Create(num_layers, wanted));
    return SourcedPlan{std::move(plan), "options"};
  }
  const bool has_directory = !options.dummy_config.has_value();
  std::optional<LayerPlanOptions> found;
  if (has_directory) {
    TIDAL_ASSIGN_OR_RETURN(found, ReadLayerPlanFile(options.model_path));
  }
  absl::StatusOr<LayerPlan> plan =
      LayerPlan::Create(num_layers, found.value_or(LayerPlanOptions()));
  if (!found.has_value()) {
    if (!plan.ok()) return plan.status();
    return SourcedPlan{*std::move(plan), "default"};
  }
  const std::string path =
      (std::filesystem::path(options.model_path) / kLayerPlanFileName).string();
  if (!plan.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", plan.status().message()));
  }
  return SourcedPlan{*std::move(plan), path};
}

// The parts of a model that need a device.
absl::Status LoadOnDevice(const ModelLoadOptions& options, Device device, ServingModel* model) {
  TIDAL_ASSIGN_OR_RETURN(const int32_t wanted_model_len, WantedModelLen(options, model->config));
  const int32_t default_batch_tokens =
      device == Device::kCuda ? kDefaultCudaBatchTokens : kDefaultCpuBatchTokens;
  model->max_batch_tokens = options.max_batch_tokens > 0
                                ? options.max_batch_tokens
                                : std::max(default_batch_tokens, options.max_running_requests);
  if (options.max_running_requests < 1 || options.max_running_requests > model->max_batch_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_running_requests: ", options.max_running_requests, " is not in 1..",
                     model->max_batch_tokens, ", the value of max_batch_tokens"));
  }
  TIDAL_ASSIGN_OR_RETURN(model->backend,
                         CreateBackend(options, model->config, device,
                                       {.max_batch_tokens = model->max_batch_tokens,
                                        .max_batch_sequences = options.max_running_requests,
                                        .max_model_len = wanted_model_len}));
  TIDAL_RETURN_IF_ERROR(FillWeights(options, model->config, model->backend.get()));
  TIDAL_ASSIGN_OR_RETURN(model->num_blocks,
                         ChooseNumBlocks(options, device, *model->backend, wanted_model_len));
  TIDAL_RETURN_IF_ERROR(model->backend->AllocateKvCache(model->num_blocks));
  model->max_model_len = static_cast<int32_t>(
      std::min<int64_t>(int64_t{model->num_blocks} * kBlockSize, wanted_model_len));
  model->device = device;
  model->runner = std::make_unique<BackendModelRunner>(model->backend.get(), model->plan);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ServingModel> LoadServingModel(const ModelLoadOptions& options) {
  const bool is_given =
      options.load_format == LoadFormat::kDummy && options.dummy_config.has_value();
  TIDAL_ASSIGN_OR_RETURN(ModelConfig config,
                         is_given ? *options.dummy_config : LoadModelConfig(options.model_path));
  TIDAL_ASSIGN_OR_RETURN(SourcedPlan plan, ChoosePlan(options, config.shape.num_layers));
  TIDAL_ASSIGN_OR_RETURN(std::unique_ptr<Tokenizer> tokenizer, LoadModelTokenizer(options, config));
  const auto path = std::filesystem::path(options.model_path).lexically_normal();
  const auto name = path.has_filename() ? path.filename() : path.parent_path().filename();
  ServingModel model = {.name = name.string(),
                        .config = std::move(config),
                        .tokenizer = std::move(tokenizer),
                        .backend = nullptr,
                        .plan = std::move(plan.plan),
                        .plan_source = std::move(plan.source),
                        .runner = nullptr};

  if (options.device == Device::kAuto) {
    const absl::Status status = LoadOnDevice(options, Device::kCuda, &model);
    if (status.ok()) return model;
    options.on_warning(absl::StrCat("serving on the CPU: CUDA cannot: ", status.message()));
    model.backend.reset();
  }
  if (options.device == Device::kCuda) {
    const absl::Status status = LoadOnDevice(options, Device::kCuda, &model);
    if (!status.ok()) {
      return absl::Status(status.code(), absl::StrCat("device: cuda: ", status.message()));
    }
    return model;
  }
  TIDAL_RETURN_IF_ERROR(LoadOnDevice(options, Device::kCpu, &model));
  return model;
}

}  // namespace tidal
