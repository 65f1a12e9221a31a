#include "server/logging.h"

#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace tidal::server {
namespace {

// UTC, milliseconds, ISO 8601.
std::string UtcTime(absl::Time time) {
  return absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", time, absl::UTCTimeZone());
}

std::string_view LevelName(LogLevel level) {
  const spdlog::string_view_t name = spdlog::level::to_string_view(level);
  return {name.data(), name.size()};
}

// Every line as a JSON object. A payload that is one already, as Log() makes them, stays as it is.
class JsonFormatter : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& out) override {
    const std::string_view payload(message.payload.data(), message.payload.size());
    const bool is_object = payload.starts_with(kObjectPrefix);
    const std::string line = is_object ? std::string(payload)
                                       : FormatLogJson(UtcTime(absl::FromChrono(message.time)),
                                                       LevelName(message.level), payload, {});
    out.append(line.data(), line.data() + line.size());
    out.push_back('\n');
  }

  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<JsonFormatter>();
  }

 private:
  // How FormatLogJson's objects begin: its keys are in a fixed order.
  static constexpr std::string_view kObjectPrefix = "{\"time\":";
};

// What to do about bytes that are not UTF-8.
constexpr auto kReplace = nlohmann::json::error_handler_t::replace;

LogFormat g_format = LogFormat::kText;  // set once, before threads start

bool NeedsQuotes(std::string_view text) {
  return text.empty() || std::any_of(text.begin(), text.end(), [](unsigned char c) {
           return c <= ' ' || c == '"' || c == '\\' || c == '=' || c == 0x7f;
         });
}

std::string TextOf(const LogValue& value) {
  if (const auto* text = std::get_if<std::string>(&value)) {
    return NeedsQuotes(*text) ? nlohmann::json(*text).dump(-1, ' ', false, kReplace) : *text;
  }
  if (const auto* number = std::get_if<int64_t>(&value)) return absl::StrCat(*number);
  return absl::StrFormat("%.6g", std::get<double>(value));
}

void LogFromGrpc(gpr_log_func_args* args) {
  LogLevel level = LogLevel::debug;
  if (args->severity == GPR_LOG_SEVERITY_INFO) level = LogLevel::info;
  if (args->severity == GPR_LOG_SEVERITY_ERROR) level = LogLevel::err;
  // Whoever connects with the wrong idea of TLS causes no error of ours.
  if (absl::StartsWith(args->message, "Handshake failed")) level = LogLevel::info;
  Log(level, absl::StrCat("grpc: ", args->message));
}

// Protobuf complains of what clients send, which they hear of themselves.
void LogFromProtobuf(google::protobuf::LogLevel /*level*/, const char* /*file*/, int /*line*/,
                     const std::string& message) {
  Log(LogLevel::debug, absl::StrCat("protobuf: ", message));
}

}  // namespace

std::string FormatLogText(std::string_view message, const LogFields& fields) {
  std::string line(message);
  for (const auto& [key, value] : fields)
    line.append(" ").append(key).append("=").append(TextOf(value));
  return line;
}

std::string FormatLogJson(std::string_view time, std::string_view level, std::string_view message,
                          const LogFields& fields) {
  nlohmann::ordered_json object;
  object["time"] = time;
  object["level"] = level;
  object["message"] = message;
  for (const auto& [key, value] : fields) {
    std::visit([&object, name = std::string(key)](const auto& v) { object[name] = v; }, value);
  }
  return object.dump(-1, ' ', false, kReplace);
}

void InitLogging(const LogOptions& options) {
  g_format = options.format;
  auto logger =
      std::make_shared<spdlog::logger>("tidal", std::make_shared<spdlog::sinks::stderr_sink_mt>());
  if (options.format == LogFormat::kJson) {
    logger->set_formatter(std::make_unique<JsonFormatter>());
  } else {
    logger->set_formatter(std::make_unique<spdlog::pattern_formatter>(
        "%Y-%m-%dT%H:%M:%S.%eZ %l %v", spdlog::pattern_time_type::utc));
  }
  logger->set_level(options.level);
  logger->flush_on(LogLevel::info);
  spdlog::set_default_logger(std::move(logger));
  gpr_set_log_function(&LogFromGrpc);
  google::protobuf::SetLogHandler(&LogFromProtobuf);
}

void Log(LogLevel level, std::string_view message, const LogFields& fields) {
  spdlog::logger* logger = spdlog::default_logger_raw();
  if (!logger->should_log(level)) return;
  const std::string line =
      g_format == LogFormat::kJson
          ? FormatLogJson(UtcTime(absl::Now()), LevelName(level), message, fields)
          : FormatLogText(message, fields);
  logger->log(level, spdlog::string_view_t(line.data(), line.size()));
}

}  // namespace tidal::server
