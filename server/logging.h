// The log: lines of text, or JSON objects, on standard error. Thread-safe after InitLogging.
#pragma once

#include <spdlog/spdlog.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace tidal::server {

enum class LogFormat : uint8_t { kText, kJson };
using LogLevel = spdlog::level::level_enum;

struct LogOptions {
  LogFormat format = LogFormat::kText;
  LogLevel level = LogLevel::info;
};

using LogValue = std::variant<std::string, int64_t, double>;
using LogField = std::pair<std::string_view, LogValue>;
using LogFields = std::vector<LogField>;

// One line without its end: `message key=value ...` as text, or an object with "time", "level",
// "message" and the fields. Text values with spaces, quotes or control characters are quoted.
std::string FormatLogText(std::string_view message, const LogFields& fields);
std::string FormatLogJson(std::string_view time, std::string_view level, std::string_view message,
                          const LogFields& fields);

// Sets format and level, for spdlog's default logger and for gRPC's and protobuf's messages too.
void InitLogging(const LogOptions& options);

void Log(LogLevel level, std::string_view message, const LogFields& fields = {});

}  // namespace tidal::server
