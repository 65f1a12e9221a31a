// Load reports for people, programs and eyes. Pure functions.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "client/bench/load_report.h"

namespace tidal::client {

// What ran, for the heads of the outputs.
struct BenchSetup {
  std::string target;
  std::string model;
  std::string device;
  std::string load;  // "open loop, Poisson", "closed loop", "trace of FILE"
  std::string attention;
  uint64_t seed = 0;
};

// A table, one load point after another.
std::string ReportText(const LoadReport& report);

// {"setup":{...},"points":[...]}, as docs/client.md describes it. Seconds and tokens.
nlohmann::ordered_json ReportsJson(const BenchSetup& setup, const std::vector<LoadReport>& reports);

// Latency and throughput against the offered load.
std::string ReportsSvg(const BenchSetup& setup, const std::vector<LoadReport>& reports);

}  // namespace tidal::client
