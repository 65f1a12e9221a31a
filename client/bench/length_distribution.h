// How long prompts and outputs are, in tokens: a distribution as named on the command line.
// Immutable after Parse.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/bench/random.h"

namespace tidal::client {

// The longest length that a distribution or a trace may name.
inline constexpr int32_t kMaxLengthTokens = 16 << 20;

class LengthDistribution {
 public:
  // "512" or "fixed:512"; "uniform:LOW:HIGH", both included; "lognormal:MEDIAN:SIGMA:MAX", SIGMA
  // that of the logarithm, lengths rounded and limited to 1..MAX; "file:PATH", one length a line,
  // drawn at random. All lengths are 1 to kMaxLengthTokens. INVALID_ARGUMENT says what is wrong.
  static absl::StatusOr<LengthDistribution> Parse(absl::string_view text);

  explicit LengthDistribution(int32_t length) : kind_(Fixed{length}) {}

  int32_t Draw(Random& random) const;

 private:
  struct Fixed {
    int32_t length;
  };
  struct Uniform {
    int32_t low;
    int32_t high;
  };
  struct Lognormal {
    double median;
    double sigma;
    int32_t max;
  };
  struct Listed {
    std::vector<int32_t> lengths;
  };
  using Kind = std::variant<Fixed, Uniform, Lognormal, Listed>;

  explicit LengthDistribution(Kind kind) : kind_(std::move(kind)) {}
  static absl::StatusOr<LengthDistribution> ReadFile(const std::string& path);
  static int32_t DrawFrom(const Fixed& fixed, Random& random);
  static int32_t DrawFrom(const Uniform& uniform, Random& random);
  static int32_t DrawFrom(const Lognormal& lognormal, Random& random);
  static int32_t DrawFrom(const Listed& listed, Random& random);

  Kind kind_;
};

}  // namespace tidal::client
