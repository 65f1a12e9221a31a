// Tokens outside the model's vocabulary or with a life of their own (begin of sequence, roles of a
// chat, ...): finds them in a text before anything is split, as `tokenizers`' AddedVocabulary does.
// Immutable once built; usable from any thread.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"

namespace tidal::tokenization {

// Bounds the time to look for tokens at one place of a text.
inline constexpr size_t kMaxAddedTokenBytes = 1024;

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool single_word = false;  // matches only where no word character adjoins
  bool lstrip = false;       // takes the white space before it along
  bool rstrip = false;       // and after it
  bool normalized = false;   // is looked for in the normalised text, itself normalised
  bool special = false;      // can be skipped on decoding, and left unparsed on encoding
};

// A stretch of text, or a token found in it.
struct AddedTokenSplit {
  std::string_view text;  // empty for a token
  size_t begin;           // offset in what was split
  const AddedToken* token = nullptr;
};

// A set of tokens that are looked for together.
class AddedTokenMatcher {
 public:
  // `pattern` is what a text has for the token; not empty, at most kMaxAddedTokenBytes.
  // INVALID_ARGUMENT where two tokens have the same pattern.
  absl::Status Add(const AddedToken& token, std::string_view pattern);

  // The parts of `text` in order, without empty stretches between tokens. At each place the longest
  // token wins, and the search goes on behind it even if its flags then forbid the match.
  // `parse_special`: whether tokens with `special` are looked for; if not, they stay text.
  std::vector<AddedTokenSplit> Split(std::string_view text, bool parse_special) const;

 private:
  struct Match {
    size_t end;
    const AddedToken* token;
  };

  std::optional<Match> LongestAt(std::string_view text, size_t begin) const;
  bool IsAllowed(const AddedToken& token, std::string_view text, size_t begin, size_t end,
                 bool parse_special) const;

  std::vector<AddedToken> tokens_;
  // A trie: node 0 is the root; the key of an edge is (node << 8 | byte).
  absl::flat_hash_map<uint64_t, uint32_t> edges_;
  std::vector<int32_t> token_of_node_ = {-1};  // index into tokens_
  std::array<bool, 256> starts_token_ = {};
};

}  // namespace tidal::tokenization
