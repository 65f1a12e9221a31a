#include "engine/tokenizer/added_tokens.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/tokenizer/utf8.h"
#include "engine/tokenizer/word_characters.h"

namespace tidal::tokenization {
namespace {

// Where the code point before `end` (> 0) starts.
size_t PreviousCodePoint(std::string_view text, size_t end) {
  size_t begin = end - 1;
  while (begin > 0 && (static_cast<uint8_t>(text[begin]) & 0xC0) == 0x80) --begin;
  return begin;
}

size_t SkipWhiteSpaceBack(std::string_view text, size_t end, size_t limit) {
  while (end > limit) {
    const size_t begin = PreviousCodePoint(text, end);
    if (!IsWhiteSpace(DecodeUtf8(text.substr(begin)))) break;
    end = begin;
  }
  return end;
}

size_t SkipWhiteSpace(std::string_view text, size_t begin) {
  while (begin < text.size() && IsWhiteSpace(DecodeUtf8(text.substr(begin)))) {
    begin += Utf8SizeFromLead(text[begin]);
  }
  return begin;
}

bool AdjoinsWord(std::string_view text, size_t begin, size_t end) {
  return (begin > 0 && IsWordCharacter(DecodeUtf8(text.substr(PreviousCodePoint(text, begin))))) ||
         (end < text.size() && IsWordCharacter(DecodeUtf8(text.substr(end))));
}

}  // namespace

absl::Status AddedTokenMatcher::Add(const AddedToken& token, std::string_view pattern) {
  uint32_t node = 0;
  for (const char c : pattern) {
    const uint64_t key = static_cast<uint64_t>(node) << 8 | static_cast<uint8_t>(c);
    const auto [it, is_new] = edges_.emplace(key, static_cast<uint32_t>(token_of_node_.size()));
    if (is_new) token_of_node_.push_back(-1);
    node = it->second;
  }
  if (token_of_node_[node] >= 0) {
    return absl::InvalidArgumentError(absl::StrCat("added_tokens: \"", token.content, "\" and \"",
                                                   tokens_[token_of_node_[node]].content,
                                                   "\" match the same text"));
  }
  token_of_node_[node] = static_cast<int32_t>(tokens_.size());
  tokens_.push_back(token);
  starts_token_[static_cast<uint8_t>(pattern[0])] = true;
  return absl::OkStatus();
}

std::optional<AddedTokenMatcher::Match> AddedTokenMatcher::LongestAt(std::string_view text,
                                                                     size_t begin) const {
  std::optional<Match> longest;
  uint32_t node = 0;
  for (size_t pos = begin; pos < text.size();) {
    const auto edge =
        edges_.find(static_cast<uint64_t>(node) << 8 | static_cast<uint8_t>(text[pos]));
    if (edge == edges_.end()) break;
    node = edge->second;
    ++pos;
    if (token_of_node_[node] >= 0) longest = {pos, &tokens_[token_of_node_[node]]};
  }
  return longest;
}

bool AddedTokenMatcher::IsAllowed(const AddedToken& token, std::string_view text, size_t begin,
                                  size_t end, bool parse_special) const {
  if (token.special && !parse_special) return false;
  return !token.single_word || !AdjoinsWord(text, begin, end);
}

std::vector<AddedTokenSplit> AddedTokenMatcher::Split(std::string_view text,
                                                      bool parse_special) const {
  std::vector<AddedTokenSplit> splits;
  size_t covered = 0;          // up to where `splits` reach
  size_t white_space_end = 0;  // of the last run that a token took along
  for (size_t pos = 0; pos < text.size();) {
    const std::optional<Match> match =
        starts_token_[static_cast<uint8_t>(text[pos])] ? LongestAt(text, pos) : std::nullopt;
    if (!match) {
      ++pos;
      continue;
    }
    size_t begin = pos;
    size_t end = match->end;
    pos = end;
    if (!IsAllowed(*match->token, text, begin, end, parse_special)) continue;
    if (match->token->lstrip) begin = SkipWhiteSpaceBack(text, begin, covered);
    if (match->token->rstrip) {
      // A token of white space may lie within the run that the one before has taken.
      end = white_space_end = end <= white_space_end ? white_space_end : SkipWhiteSpace(text, end);
    }
    if (covered < begin) splits.push_back({text.substr(covered, begin - covered), covered});
    splits.push_back({"", begin, match->token});
    covered = end;
  }
  if (covered < text.size()) splits.push_back({text.substr(covered), covered});
  return splits;
}

}  // namespace tidal::tokenization
