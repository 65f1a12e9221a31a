#include "server/serving_model_state.h"

#include <map>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "engine/backend/status_macros.h"
#include "engine/clock.h"
#include "server/model_service.h"
#include "server/proto_conversion.h"

namespace tidal::server {
namespace {

EngineOptions EngineOptionsFor(const ServingModel& model, const ServerConfig& config) {
  return {.max_model_len = model.max_model_len,
          .max_batch_tokens = model.max_batch_tokens,
          .max_running_requests = config.model.max_running_requests,
          .max_queued_requests = config.max_queued_requests,
          .max_queued_tokens = config.max_queued_tokens,
          .num_blocks = model.num_blocks,
          .prefix_caching = config.prefix_caching,
          .eos_token_ids = model.config.eos_token_ids};
}

// "tidal", as the flag says it.
std::string ModeName(api::AttentionMode mode) {
  return absl::AsciiStrToLower(absl::StripPrefix(api::AttentionMode_Name(mode), "ATTENTION_MODE_"));
}

}  // namespace

AttentionOptions ResolveAttention(const AttentionConfig& config, const ModelShape& shape,
                                  const LayerPlan& plan) {
  AttentionOptions attention{.mode = config.mode,
                             .selection = config.selection,
                             .correction_interval = config.correction_interval};
  if (config.scope_is_auto) {
    attention.selection.scope = shape.num_query_heads == shape.num_kv_heads
                                    ? SelectionScope::kQueryHead
                                    : SelectionScope::kKvHead;
  }
  if (attention.mode == AttentionMode::kTidal && !plan.has_sparse_layers()) {
    attention.mode = AttentionMode::kFull;
  }
  return attention;
}

absl::Status ServingModelState::Load(const ServerConfig& config, EngineObserver* observer,
                                     PrometheusMetrics* metrics) {
  ModelLoadOptions load_options = config.model;
  load_options.on_warning = [](absl::string_view message) {
    Log(LogLevel::warn, std::string(message));
  };
  TIDAL_ASSIGN_OR_RETURN(model_, LoadServingModel(load_options));
  const EngineOptions options = EngineOptionsFor(*model_, config);
  engine_ = std::make_unique<Engine>(options, model_->plan, model_->runner.get(),
                                     model_->tokenizer.get(), Clock::Monotonic(), observer);
  const AttentionOptions attention =
      ResolveAttention(config.attention, model_->config.shape, model_->plan);
  if (const absl::Status status =
          model_->backend->CheckAttention(attention.mode, attention.selection);
      !status.ok()) {
    return absl::Status(status.code(),
                        absl::StrCat("--attention, --selection_scope: ", status.message()));
  }
  const std::string name = config.model_name.empty() ? model_->name : config.model_name;
  const Tokenizer* tokenizer = model_->tokenizer.get();
  const int32_t max_request_tokens = engine_->max_request_tokens();
  state_ = {
      .engine = engine_.get(),
      .plan = &model_->plan,
      .tokenizer = tokenizer,
      .clock = Clock::Monotonic(),
      .validation = {.tokenizer = tokenizer,
                     .vocab_size = model_->config.shape.vocab_size,
                     .max_request_tokens = max_request_tokens,
                     .max_text_bytes =
                         tokenizer == nullptr ? 0 : MaxTextBytes(*tokenizer, max_request_tokens),
                     .default_attention = attention,
                     .has_sparse_layers = model_->plan.has_sparse_layers()},
      .model_info = DescribeModel(name, *model_, options, max_request_tokens, attention)};
  ExportMetrics(config, options, metrics);
  engine_->Start();
  return absl::OkStatus();
}

LogFields ServingModelState::Describe() const {
  const auto& info = state_.model_info;
  return {{"model", info.model_name()},
          {"architecture", info.architecture()},
          {"device", info.device()},
          {"max_model_len", int64_t{info.limits().max_model_len()}},
          {"kv_cache_tokens", info.limits().kv_cache_tokens()},
          {"attention", ModeName(info.default_attention().mode())},
          {"token_budget", int64_t{info.default_attention().token_budget()}},
          {"full_layers", absl::StrJoin(model_->plan.LayersWithRole(LayerRole::kFull), ",")},
          {"selection_layers", absl::StrJoin(model_->plan.LayersWithRole(LayerRole::kSelect), ",")},
          {"layer_plan_source", model_->plan_source}};
}

void ServingModelState::ExportMetrics(const ServerConfig& config, const EngineOptions& options,
                                      PrometheusMetrics* metrics) const {
  const auto& info = state_.model_info;
  const std::map<std::string, std::string> labels = {
      {"model_name", info.model_name()},
      {"device", info.device()},
      {"max_model_len", absl::StrCat(options.max_model_len)},
      {"max_batch_tokens", absl::StrCat(options.max_batch_tokens)},
      {"max_running_requests", absl::StrCat(options.max_running_requests)},
      {"max_queued_requests", absl::StrCat(options.max_queued_requests)},
      {"max_queued_tokens", absl::StrCat(options.max_queued_tokens)},
      {"block_size", absl::StrCat(kBlockSize)},
      {"num_kv_blocks", absl::StrCat(options.num_blocks)},
      {"prefix_caching", options.prefix_caching ? "true" : "false"},
      {"attention", ModeName(info.default_attention().mode())},
      {"token_budget", absl::StrCat(config.attention.selection.token_budget)},
  };
  metrics->SetConfig(labels, options.num_blocks);
  metrics->SetMemory(model_->backend->memory_use());
  metrics->SetProgressAge(
      [engine = engine_.get()] { return Clock::Monotonic()->Now() - engine->last_progress(); });
}

}  // namespace tidal::server
