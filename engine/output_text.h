// The text of one sequence's output as it grows: whole UTF-8 only, ending before (or after) the
// first stop string. What may still become a stop string is held back. Engine thread only.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/tokenizer/incremental_detokenizer.h"
#include "engine/tokenizer/tokenizer.h"

namespace tidal {

class OutputText {
 public:
  struct Options {
    bool skip_special_tokens = true;
    std::vector<std::string> stop_strings = {};  // none is empty
    bool include_stop_in_output = false;
  };

  // `tokenizer` must outlive this object; null makes every text empty.
  OutputText(const Tokenizer* tokenizer, Options options);

  // Text that the token releases. Where it completes a stop string, the text ends there,
  // matched_stop_string() is set, and nothing may be appended any more. Without `match_stops` the
  // token's text cannot match.
  std::string Append(int32_t token_id, bool match_stops);

  // Everything held back; to be called once, at the end of an output that no stop string ended.
  std::string Flush();

  const std::optional<std::string>& matched_stop_string() const { return matched_stop_string_; }

 private:
  std::string ReleaseUpToStop(bool match_stops);

  // Length of the longest end of held_text_ that begins a stop string without completing it.
  size_t LengthOfPossibleStop() const;

  Options options_;
  std::optional<IncrementalDetokenizer> detokenizer_;
  std::string held_text_;
  std::optional<std::string> matched_stop_string_;
};

}  // namespace tidal
