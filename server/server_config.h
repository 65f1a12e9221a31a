// What the server is started with: every flag, also readable from the environment as TIDAL_<NAME>,
// checked, as one plain value. The command line wins over the environment.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/model_loader.h"
#include "engine/request.h"
#include "server/logging.h"
#include "server/transport_config.h"

namespace tidal::server {

struct AttentionConfig {
  AttentionMode mode = AttentionMode::kTidal;
  Selection selection;              // its scope is meaningful where scope_is_auto is false
  int32_t correction_interval = 0;  // generated tokens; 0 = never
  bool scope_is_auto = true;        // query_head where query and KV heads are as many, else kv_head
};

struct ServerConfig {
  TransportConfig transport;
  std::string metrics_address;  // empty = no metrics endpoint
  std::string port_file;        // empty = none
  std::string model_name;       // empty = the directory's last component
  ModelLoadOptions model;
  int32_t max_queued_requests = 0;
  int64_t max_queued_tokens = 0;
  bool prefix_caching = true;
  AttentionConfig attention;
  int64_t max_receive_message_bytes = 0;
  int64_t max_pending_response_bytes = 0;
  absl::Duration stalled_stream_timeout;
  bool gateway_metrics = false;
  absl::Duration lame_duck_interval;
  absl::Duration shutdown_timeout;
  absl::Duration liveness_timeout;
  LogOptions log;
  bool log_prompts = false;
};

// Sets every flag of this server that the environment names as TIDAL_<NAME>. INVALID_ARGUMENT names
// the variable and what is wrong with its value. To be called before the command line is parsed.
absl::Status SetFlagsFromEnvironment();

// The flags' present values. INVALID_ARGUMENT names flag, value and limit.
absl::StatusOr<ServerConfig> ConfigFromFlags();

// All of it: environment, command line (which ends the process for unknown flags, --help and
// --version), and the check.
absl::StatusOr<ServerConfig> ParseServerConfig(int argc, char** argv);

}  // namespace tidal::server
