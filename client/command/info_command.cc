#include <google/protobuf/repeated_field.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "client/command/commands.h"
#include "client/command/event_json.h"
#include "client/command/names.h"

namespace tidal::client {
namespace {

namespace v1 = inference::v1;

std::string Join(const google::protobuf::RepeatedField<int32_t>& values) {
  return values.empty() ? "none" : absl::StrJoin(values, ", ");
}

// "name      value" lines, the values in one column.
class Table {
 public:
  void Add(absl::string_view name, absl::string_view value) {
    absl::StrAppendFormat(&text_, "%-24s%s\n", name, value);
  }
  void Add(absl::string_view name, int64_t value) { Add(name, absl::StrCat(value)); }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

void AddModel(const v1::GetModelInfoResponse& info, Table& table) {
  table.Add("model", info.model_name());
  table.Add("architecture", info.architecture());
  table.Add("server version", info.server_version());
  table.Add("device", info.device());
  table.Add("layers", info.num_layers());
  table.Add("hidden size", info.hidden_size());
  table.Add("query / KV heads", absl::StrCat(info.num_query_heads(), " / ", info.num_kv_heads()));
  table.Add("head size", info.head_dim());
  table.Add("vocabulary", info.vocab_size());
  table.Add("begin tokens", Join(info.bos_token_ids()));
  table.Add("end tokens", Join(info.eos_token_ids()));
}

void AddAttention(const v1::EffectiveAttention& attention, Table& table) {
  table.Add("attention", AttentionModeName(attention.mode()));
  if (attention.mode() == v1::ATTENTION_MODE_FULL) return;
  table.Add("token budget", attention.token_budget());
  table.Add("selection scope", SelectionScopeName(attention.selection_scope()));
  table.Add("full layers", Join(attention.full_layers()));
  table.Add("selection layers", Join(attention.selection_layers()));
  table.Add("sink / recent tokens",
            absl::StrCat(attention.sink_tokens(), " / ", attention.recent_tokens()));
  table.Add("correction interval", attention.correction_interval());
}

void AddLimits(const v1::GetModelInfoResponse::Limits& limits, Table& table) {
  table.Add("max model length", limits.max_model_len());
  table.Add("max batch tokens", limits.max_batch_tokens());
  table.Add("max running requests", limits.max_running_requests());
  table.Add("max queued requests", limits.max_queued_requests());
  table.Add("max queued tokens", limits.max_queued_tokens());
  table.Add("KV cache tokens", limits.kv_cache_tokens());
  table.Add("max token budget", limits.max_token_budget());
}

}  // namespace

ExitCode RunInfo(absl::Span<const std::string> arguments, CommandContext& context) {
  FlagSet flags;
  if (const auto done = ParseCommand("tidal-client info [FLAGS]", flags, arguments, context)) {
    return *done;
  }
  const auto info = context.MakeClient().GetModelInfo(context.MakeCallOptions());
  if (!info.ok()) return context.Fail(info.status());
  if (context.common.json) {
    WriteJsonLine(ModelInfoJson(*info), context.console.out);
  } else {
    Table table;
    AddModel(*info, table);
    AddAttention(info->default_attention(), table);
    AddLimits(info->limits(), table);
    context.console.out << table.text() << std::flush;
  }
  return context.console.out.good() ? ExitCode::kOk : ExitCode::kBrokenPipe;
}

}  // namespace tidal::client
