#include "client/bench/load_plan.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace tidal::client {
namespace {

// Fields of a trace, in the order of TraceValues.
constexpr std::array<absl::string_view, 3> kFields = {"arrival_seconds", "prompt_tokens",
                                                      "output_tokens"};
constexpr double kMaxArrivalSeconds = 1e7;
using TraceValues = std::array<double, 3>;

absl::Status LineError(int64_t line, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("line ", line, ": ", what));
}

absl::StatusOr<PlannedRequest> MakeRequest(const TraceValues& values, int64_t line) {
  if (!(values[0] >= 0 && values[0] <= kMaxArrivalSeconds)) {
    return LineError(line, absl::StrCat("arrival_seconds is ", values[0], "; it must be 0 to ",
                                        kMaxArrivalSeconds));
  }
  for (std::size_t i = 1; i < values.size(); ++i) {
    if (values[i] >= 1 && values[i] <= kMaxLengthTokens && std::floor(values[i]) == values[i]) {
      continue;
    }
    return LineError(line, absl::StrCat(kFields[i], " is ", values[i],
                                        "; it must be a whole number of 1 to ", kMaxLengthTokens));
  }
  return PlannedRequest{absl::Seconds(values[0]), static_cast<int32_t>(values[1]),
                        static_cast<int32_t>(values[2])};
}

absl::StatusOr<TraceValues> ParseJsonLine(absl::string_view text, int64_t line) {
  const auto json = nlohmann::json::parse(text.begin(), text.end(), nullptr, false);
  if (!json.is_object()) return LineError(line, "it is no JSON object");
  TraceValues values{};
  for (std::size_t i = 0; i < kFields.size(); ++i) {
    const auto it = json.find(std::string(kFields[i]));
    if (it == json.end() || !it->is_number()) {
      return LineError(line, absl::StrCat("it lacks the number ", kFields[i]));
    }
    values[i] = it->get<double>();
  }
  return values;
}

using ColumnIndices = std::array<std::size_t, 3>;

absl::StatusOr<ColumnIndices> ParseCsvHeader(absl::string_view text, int64_t line) {
  const std::vector<absl::string_view> names = absl::StrSplit(text, ',');
  ColumnIndices indices{};
  for (std::size_t i = 0; i < kFields.size(); ++i) {
    const auto it = std::find_if(names.begin(), names.end(), [i](absl::string_view name) {
      return absl::StripAsciiWhitespace(name) == kFields[i];
    });
    if (it == names.end()) {
      return LineError(line, absl::StrCat("the header lacks the column ", kFields[i]));
    }
    indices[i] = static_cast<std::size_t>(it - names.begin());
  }
  return indices;
}

absl::StatusOr<TraceValues> ParseCsvLine(absl::string_view text, const ColumnIndices& indices,
                                         int64_t line) {
  const std::vector<absl::string_view> cells = absl::StrSplit(text, ',');
  TraceValues values{};
  for (std::size_t i = 0; i < kFields.size(); ++i) {
    const absl::string_view cell =
        indices[i] < cells.size() ? absl::StripAsciiWhitespace(cells[indices[i]]) : "";
    if (!absl::SimpleAtod(cell, &values[i])) {
      return LineError(line, absl::StrCat(kFields[i], " is '", cell, "', no number"));
    }
  }
  return values;
}

}  // namespace

std::vector<absl::Duration> PoissonArrivals(double rate, int64_t num_requests,
                                            absl::Duration duration, uint64_t seed) {
  Random random(seed);
  std::vector<absl::Duration> arrivals;
  double seconds = 0;
  while (static_cast<int64_t>(arrivals.size()) < num_requests) {
    seconds += random.NextExponential() / rate;
    if (absl::Seconds(seconds) > duration) break;
    arrivals.push_back(absl::Seconds(seconds));
  }
  return arrivals;
}

std::vector<PlannedRequest> PlanRequests(const std::vector<absl::Duration>& arrivals,
                                         const LengthDistribution& prompt_tokens,
                                         const LengthDistribution& output_tokens, uint64_t seed) {
  Random random(seed);
  std::vector<PlannedRequest> requests;
  requests.reserve(arrivals.size());
  for (const absl::Duration arrival : arrivals) {
    const int32_t prompt_length = prompt_tokens.Draw(random);
    requests.push_back({arrival, prompt_length, output_tokens.Draw(random)});
  }
  return requests;
}

absl::StatusOr<std::vector<PlannedRequest>> ParseTrace(absl::string_view text) {
  std::vector<PlannedRequest> requests;
  bool is_csv = false;
  bool is_first = true;
  ColumnIndices indices{};
  int64_t number = 0;
  for (const absl::string_view raw_line : absl::StrSplit(text, '\n')) {
    ++number;
    const absl::string_view line = absl::StripAsciiWhitespace(raw_line);
    if (line.empty()) continue;
    if (is_first) {
      is_first = false;
      is_csv = line.front() != '{';
      if (is_csv) {
        const auto header = ParseCsvHeader(line, number);
        if (!header.ok()) return header.status();
        indices = *header;
        continue;
      }
    }
    const auto values = is_csv ? ParseCsvLine(line, indices, number) : ParseJsonLine(line, number);
    if (!values.ok()) return values.status();
    const auto request = MakeRequest(*values, number);
    if (!request.ok()) return request.status();
    if (static_cast<int64_t>(requests.size()) == kMaxRequests) {
      return LineError(number, absl::StrCat("a trace has at most ", kMaxRequests, " requests"));
    }
    requests.push_back(*request);
  }
  if (requests.empty()) return absl::InvalidArgumentError("the trace holds no requests");
  std::stable_sort(requests.begin(), requests.end(),
                   [](const auto& a, const auto& b) { return a.arrival < b.arrival; });
  return requests;
}

}  // namespace tidal::client
