// From a checkpoint directory to a model that can serve: reads the configuration, opens tokenizer
// and weights, creates the backend, and sizes the KV cache. Every program that runs the engine
// starts here.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/backend/backend.h"
#include "engine/checkpoint/model_config.h"
#include "engine/layer_plan.h"
#include "engine/model_runner.h"
#include "engine/tokenizer/tokenizer.h"

namespace tidal {

enum class Device : uint8_t {
  kAuto,  // CUDA where it can serve the model, else the CPU with a warning that says why
  kCpu,
  kCuda,
};
enum class LoadFormat : uint8_t {
  kAuto,   // the directory's safetensors files
  kDummy,  // random weights; config.json alone is enough
};

struct ModelLoadOptions {
  std::string model_path;
  LoadFormat load_format = LoadFormat::kAuto;
  // With kDummy, instead of the config.json of model_path, which is then only a name.
  std::optional<ModelConfig> dummy_config = std::nullopt;
  Device device = Device::kAuto;
  int32_t cpu_threads = 0;  // 0 = all cores
  // 0 = the checkpoint's, or what the KV cache holds or the sliding window spans if that is less.
  int32_t max_model_len = 0;
  int32_t max_batch_tokens = 0;  // 0 = the device's default
  int32_t max_running_requests = 0;
  int64_t kv_cache_memory_bytes = 0;  // 0 = by memory_fraction
  // On CUDA, of the device's memory, for weights, workspaces and KV cache together (0 = 0.9). On
  // the CPU, of the memory that is free beside weights and workspaces, for the KV cache (0 = 0.5).
  double memory_fraction = 0.0;
  // Where it says nothing, what the checkpoint's tidal.json says (layer_plan_file.h), where there
  // is one.
  LayerPlanOptions layer_plan = {};
  std::function<void(absl::string_view)> on_warning = [](absl::string_view) {};
};

struct ServingModel {
  std::string name;  // the directory's last component
  ModelConfig config;
  std::unique_ptr<Tokenizer> tokenizer;  // null where a dummy has none
  Device device = Device::kCpu;          // never kAuto
  std::unique_ptr<Backend> backend;
  LayerPlan plan;
  std::string plan_source = {};  // for people: "options", "default", or the file it was read from
  std::unique_ptr<ModelRunner> runner;  // on `backend`
  int32_t max_model_len = 0;
  int32_t max_batch_tokens = 0;
  int32_t num_blocks = 0;
};

// INVALID_ARGUMENT names an option, or a tidal.json, that does not suit the checkpoint;
// RESOURCE_EXHAUSTED names needed and available bytes and the longest context that would fit;
// UNAVAILABLE says what kCuda lacks: the plugin, a library, the driver or a device.
absl::StatusOr<ServingModel> LoadServingModel(const ModelLoadOptions& options);

}  // namespace tidal
