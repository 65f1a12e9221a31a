#include "client/top/metrics_text.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace tidal::client {
namespace {

constexpr std::size_t kMaxQuotedBytes = 80;

// Takes a label's value off the front of `rest`, which begins after the opening quote.
bool ConsumeQuoted(absl::string_view* rest, std::string* value) {
  for (std::size_t i = 0; i < rest->size(); ++i) {
    char c = (*rest)[i];
    if (c == '"') {
      rest->remove_prefix(i + 1);
      return true;
    }
    if (c == '\\') {
      if (++i == rest->size()) return false;
      c = (*rest)[i] == 'n' ? '\n' : (*rest)[i];
    }
    value->push_back(c);
  }
  return false;
}

// Takes `name="value",...}` off the front of `rest`.
bool ConsumeLabels(absl::string_view* rest, std::map<std::string, std::string>* labels) {
  while (true) {
    *rest = absl::StripLeadingAsciiWhitespace(*rest);
    if (absl::ConsumePrefix(rest, "}")) return true;
    const std::size_t equals = rest->find('=');
    if (equals == absl::string_view::npos) return false;
    const std::string name(absl::StripAsciiWhitespace(rest->substr(0, equals)));
    *rest = absl::StripLeadingAsciiWhitespace(rest->substr(equals + 1));
    std::string value;
    if (name.empty() || !absl::ConsumePrefix(rest, "\"") || !ConsumeQuoted(rest, &value)) {
      return false;
    }
    (*labels)[name] = std::move(value);
    *rest = absl::StripLeadingAsciiWhitespace(*rest);
    if (!absl::ConsumePrefix(rest, ",") && (rest->empty() || rest->front() != '}')) return false;
  }
}

bool ParseSample(absl::string_view line, MetricSample* sample) {
  const std::size_t name_end = line.find_first_of("{ \t");
  if (name_end == 0 || name_end == absl::string_view::npos) return false;
  sample->name = std::string(line.substr(0, name_end));
  absl::string_view rest = absl::StripLeadingAsciiWhitespace(line.substr(name_end));
  if (absl::ConsumePrefix(&rest, "{") && !ConsumeLabels(&rest, &sample->labels)) return false;
  const std::vector<absl::string_view> numbers =
      absl::StrSplit(rest, absl::ByAnyChar(" \t"), absl::SkipEmpty());
  int64_t timestamp = 0;
  if (numbers.empty() || numbers.size() > 2) return false;
  if (numbers.size() == 2 && !absl::SimpleAtoi(numbers[1], &timestamp)) return false;
  return absl::SimpleAtod(numbers[0], &sample->value);
}

}  // namespace

absl::StatusOr<std::vector<MetricSample>> ParseMetricsText(absl::string_view text) {
  std::vector<MetricSample> samples;
  int64_t number = 0;
  for (const absl::string_view raw_line : absl::StrSplit(text, '\n')) {
    ++number;
    const absl::string_view line = absl::StripAsciiWhitespace(raw_line);
    if (line.empty() || line.front() == '#') continue;
    MetricSample sample;
    if (!ParseSample(line, &sample)) {
      return absl::InvalidArgumentError(
          absl::StrCat("line ", number, " is no metric: '", line.substr(0, kMaxQuotedBytes), "'"));
    }
    samples.push_back(std::move(sample));
  }
  return samples;
}

}  // namespace tidal::client
