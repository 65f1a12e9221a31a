// What happens to a text before it is split: the normalizers that Llama-family tokenizers use.
// Immutable after construction, usable from any thread.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"

namespace tidal::tokenization {

// Puts `prefix` before a text that is not empty.
struct PrependStep {
  std::string prefix;
};

// Replaces every occurrence of `pattern` (not empty), from left to right.
struct ReplaceStep {
  std::string pattern;
  std::string content;
};

// RESOURCE_EXHAUSTED where the result would have more than `max_size` bytes.
absl::StatusOr<std::string> ReplaceAll(std::string_view text, const ReplaceStep& step,
                                       size_t max_size);

// How large a text may grow under normalisation or decoding.
size_t MaxGrownSize(size_t size);

class Normalizer {
 public:
  using Step = std::variant<PrependStep, ReplaceStep>;

  Normalizer() = default;
  explicit Normalizer(std::vector<Step> steps) : steps_(std::move(steps)) {}

  // RESOURCE_EXHAUSTED where the text would grow beyond MaxGrownSize.
  absl::StatusOr<std::string> Normalize(std::string_view text) const;

 private:
  std::vector<Step> steps_;
};

}  // namespace tidal::tokenization
