#include "engine/output_text.h"

#include <algorithm>
#include <utility>

#include "engine/check.h"

namespace tidal {

OutputText::OutputText(const Tokenizer* tokenizer, Options options) : options_(std::move(options)) {
  if (tokenizer != nullptr) detokenizer_.emplace(tokenizer, options_.skip_special_tokens);
}

std::string OutputText::Append(int32_t token_id, bool match_stops) {
  TIDAL_CHECK(!matched_stop_string_.has_value(), "nothing follows a stop string");
  if (!detokenizer_.has_value()) return "";
  held_text_ += detokenizer_->Append(token_id);
  return ReleaseUpToStop(match_stops);
}

std::string OutputText::Flush() {
  if (!detokenizer_.has_value()) return "";
  held_text_ += detokenizer_->Flush();
  return std::exchange(held_text_, "");
}

std::string OutputText::ReleaseUpToStop(bool match_stops) {
  if (!match_stops) return std::exchange(held_text_, "");
  // The earliest occurrence wins; of two at one place, the one listed first.
  size_t stop_begin = std::string::npos;
  const std::string* stop = nullptr;
  for (const std::string& candidate : options_.stop_strings) {
    const size_t begin = held_text_.find(candidate);
    if (begin < stop_begin) {
      stop_begin = begin;
      stop = &candidate;
    }
  }
  if (stop != nullptr) {
    matched_stop_string_ = *stop;
    held_text_.resize(stop_begin + (options_.include_stop_in_output ? stop->size() : 0));
    return std::exchange(held_text_, "");
  }
  const size_t num_released_bytes = held_text_.size() - LengthOfPossibleStop();
  std::string released = held_text_.substr(0, num_released_bytes);
  held_text_.erase(0, num_released_bytes);
  return released;
}

size_t OutputText::LengthOfPossibleStop() const {
  const std::string_view held = held_text_;
  size_t longest = 0;
  for (const std::string& stop : options_.stop_strings) {
    for (size_t length = std::min(stop.size() - 1, held.size()); length > longest; --length) {
      if (held.substr(held.size() - length) == std::string_view(stop).substr(0, length)) {
        longest = length;
        break;
      }
    }
  }
  return longest;
}

}  // namespace tidal
