#include "client/bench/length_distribution.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace tidal::client {
namespace {

constexpr double kMaxSigma = 10;

absl::StatusOr<int32_t> ParseLength(absl::string_view text) {
  int32_t length = 0;
  if (!absl::SimpleAtoi(text, &length) || length < 1 || length > kMaxLengthTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", text, "' is no length of 1 to ", kMaxLengthTokens, " tokens"));
  }
  return length;
}

}  // namespace

absl::StatusOr<LengthDistribution> LengthDistribution::ReadFile(const std::string& path) {
  std::ifstream file(path);
  if (!file) {
    return absl::InvalidArgumentError(absl::StrCat("cannot open ", path, ": ", strerror(errno)));
  }
  Listed listed;
  std::string line;
  for (int64_t number = 1; std::getline(file, line); ++number) {
    const absl::string_view text = absl::StripAsciiWhitespace(line);
    if (text.empty()) continue;
    const absl::StatusOr<int32_t> length = ParseLength(text);
    if (!length.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ":", number, ": ", length.status().message()));
    }
    listed.lengths.push_back(*length);
  }
  if (listed.lengths.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, " holds no lengths"));
  }
  return LengthDistribution(Kind(std::move(listed)));
}

absl::StatusOr<LengthDistribution> LengthDistribution::Parse(absl::string_view text) {
  if (absl::ConsumePrefix(&text, "file:")) return ReadFile(std::string(text));
  std::vector<absl::string_view> parts = absl::StrSplit(text, ':');
  if (parts.size() == 1) parts.insert(parts.begin(), "fixed");
  std::vector<int32_t> lengths;
  double sigma = 0;
  const bool is_lognormal = parts.front() == "lognormal" && parts.size() == 4;
  for (std::size_t i = 1; i < parts.size(); ++i) {
    if (is_lognormal && i == 2) {
      if (absl::SimpleAtod(parts[i], &sigma) && sigma >= 0 && sigma <= kMaxSigma) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("'", parts[i], "' is no sigma of 0 to ", kMaxSigma));
    }
    const absl::StatusOr<int32_t> length = ParseLength(parts[i]);
    if (!length.ok()) return length.status();
    lengths.push_back(*length);
  }
  if (is_lognormal) return LengthDistribution(Kind(Lognormal{1.0 * lengths[0], sigma, lengths[1]}));
  if (parts.front() == "fixed" && lengths.size() == 1) return LengthDistribution(lengths[0]);
  if (parts.front() == "uniform" && lengths.size() == 2) {
    if (lengths[0] <= lengths[1]) return LengthDistribution(Kind(Uniform{lengths[0], lengths[1]}));
    return absl::InvalidArgumentError(
        absl::StrCat("the lower end ", lengths[0], " is above the upper end ", lengths[1]));
  }
  return absl::InvalidArgumentError(
      "it must be N, fixed:N, uniform:LOW:HIGH, lognormal:MEDIAN:SIGMA:MAX or file:PATH");
}

int32_t LengthDistribution::DrawFrom(const Fixed& fixed, Random& /*random*/) {
  return fixed.length;
}

int32_t LengthDistribution::DrawFrom(const Uniform& uniform, Random& random) {
  return random.NextInRange(uniform.low, uniform.high);
}

int32_t LengthDistribution::DrawFrom(const Lognormal& lognormal, Random& random) {
  const double drawn = lognormal.median * std::exp(lognormal.sigma * random.NextNormal());
  return static_cast<int32_t>(std::lround(std::clamp(drawn, 1.0, 1.0 * lognormal.max)));
}

int32_t LengthDistribution::DrawFrom(const Listed& listed, Random& random) {
  return listed.lengths[random.Next() % listed.lengths.size()];
}

int32_t LengthDistribution::Draw(Random& random) const {
  return std::visit([&random](const auto& kind) { return DrawFrom(kind, random); }, kind_);
}

}  // namespace tidal::client
