// Cuts a normalised text into the pieces within which BPE merges: `tokenizers`' Split, Digits,
// Metaspace and ByteLevel, one after the other. Immutable after construction; usable from any
// thread, each with its own PieceArena.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "engine/tokenizer/regex.h"

namespace tidal::tokenization {

// What becomes of the matches of a Split, in the words of tokenizer.json.
enum class SplitBehavior : uint8_t {
  kRemoved,
  kIsolated,
  kMergedWithPrevious,
  kMergedWithNext,
  kContiguous,
};

struct SplitStep {
  std::variant<std::string, Regex> pattern;  // a literal (not empty), or a regular expression
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;  // what lies between the matches is taken for the matches
};

enum class PrependScheme : uint8_t { kFirst, kNever, kAlways };

// Spaces become `replacement`, which is also put before a text that does not start with it.
struct MetaspaceStep {
  std::string replacement;
  PrependScheme prepend_scheme = PrependScheme::kAlways;
  bool split = true;
};

// The bytes' stand-ins are left to the model; only the last step can be this one.
struct ByteLevelStep {
  bool add_prefix_space = false;
  std::optional<Regex> pattern;
};

// What splitting needs besides its input; pieces may point into it. One thread at a time.
struct PieceArena {
  RegexWorkspace regex_workspace;
  std::deque<std::string> texts;
};

class PreTokenizer {
 public:
  using Step = std::variant<SplitStep, MetaspaceStep, ByteLevelStep>;

  PreTokenizer() = default;
  explicit PreTokenizer(std::vector<Step> steps) : steps_(std::move(steps)) {}

  // Whether pieces are to be looked up byte by byte in a byte-level vocabulary.
  bool is_byte_level() const;

  // *pieces becomes the parts of `text`, none of them empty; they point into `text` or `arena`.
  // `is_text_start`: nothing precedes `text` in what is encoded.
  absl::Status Split(std::string_view text, bool is_text_start, PieceArena* arena,
                     std::vector<std::string_view>* pieces) const;

 private:
  std::vector<Step> steps_;
};

// Applies `behavior` to sections that cover a text; the result's is_match has no meaning.
std::vector<Section> ApplySplitBehavior(const std::vector<Section>& sections,
                                        SplitBehavior behavior);

}  // namespace tidal::tokenization
