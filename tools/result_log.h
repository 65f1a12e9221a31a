// A file of results, one JSON object a line, that a measurement adds to and takes up again. Not
// thread-safe.
#pragma once

#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace tidal {

class ResultLog {
 public:
  // Opens or makes the file. Its first line is `settings`: what every result in it shares. A last
  // line without an end, which an interrupted run leaves, is dropped. INVALID_ARGUMENT where the
  // file was made with other settings, or a line is no JSON object.
  static absl::StatusOr<std::unique_ptr<ResultLog>> Open(const std::string& path,
                                                         const nlohmann::json& settings);

  // Those found at Open, then those appended.
  const std::vector<nlohmann::json>& results() const { return results_; }

  // Writes the result to the file before it returns. UNAVAILABLE where that fails.
  absl::Status Append(nlohmann::json result);

 private:
  explicit ResultLog(std::string path) : path_(std::move(path)) {}

  absl::Status Read(const nlohmann::json& settings);
  absl::Status WriteLine(const nlohmann::json& value);

  std::string path_;
  std::vector<nlohmann::json> results_;
  std::ofstream file_;
};

}  // namespace tidal
