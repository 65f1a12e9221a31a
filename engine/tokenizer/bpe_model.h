// Byte pair encoding with a vocabulary and ranked merges (Sennrich et al., arXiv 1508.07909), as
// `tokenizers`' BPE model does it: the lowest-ranked adjacent pair merges first, the leftmost of
// equals first. Immutable after Create; usable from any thread.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "engine/tokenizer/string_map.h"

namespace tidal::tokenization {

struct BpeOptions {
  bool byte_level = false;     // pieces are bytes, the vocabulary is in GPT-2's byte alphabet
  bool byte_fallback = false;  // a character without a token becomes its bytes' tokens "<0x..>"
  bool fuse_unk = false;       // neighbouring unknown characters become one token
  bool ignore_merges = false;  // a piece that is a token is that token
  std::string unk_token = "";  // empty: characters without a token vanish
};

using Vocabulary = StringMap<int32_t>;

class BpeModel {
 public:
  using MergeList = std::vector<std::pair<std::string, std::string>>;  // by rank

  // INVALID_ARGUMENT names a merge or an unknown token that is not in the vocabulary. Its ids are
  // distinct and not negative; its tokens are well-formed UTF-8.
  static absl::StatusOr<BpeModel> Create(const BpeOptions& options, Vocabulary vocabulary,
                                         const MergeList& merges);

  // Appends the ids of `piece` (well-formed UTF-8, not empty, below 2^31 bytes). Takes
  // O(n log n) time. Returns the number of merge candidates that were looked at.
  int64_t Encode(std::string_view piece, std::vector<int32_t>* token_ids) const;

  const Vocabulary& vocabulary() const { return vocabulary_; }

 private:
  struct Merge {
    int32_t rank;
    int32_t merged_id;
  };
  class Word;

  BpeModel(const BpeOptions& options, Vocabulary vocabulary);

  absl::Status AddMerges(const MergeList& merges);
  std::optional<int32_t> Find(std::string_view token) const;
  const Merge* FindMerge(int32_t left, int32_t right) const;
  void AddCharacter(std::string_view character, Word* word) const;

  BpeOptions options_;
  std::optional<int32_t> unk_id_;
  Vocabulary vocabulary_;
  Vocabulary whole_pieces_;  // with ignore_merges: by what a piece looks like (bytes if byte_level)
  absl::flat_hash_map<uint64_t, Merge> merges_;  // by (left id << 32 | right id)
  std::array<int32_t, 256> byte_ids_;  // of the byte's character or of "<0x..>"; -1 = none
};

}  // namespace tidal::tokenization
