#include "engine/tokenizer/bpe_model.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/backend/status_macros.h"
#include "engine/tokenizer/byte_alphabet.h"
#include "engine/tokenizer/utf8.h"

namespace tidal::tokenization {
namespace {

// A piece's part; parts form a doubly linked list over positions in the piece.
struct Symbol {
  int32_t id;
  int32_t previous;  // -1 = none
  int32_t next;      // -1 = none
  bool is_merged_away;
};

struct Candidate {
  int32_t rank;
  int32_t position;  // of the left symbol
  int32_t merged_id;
};

// For a heap whose top is the lowest rank, leftmost first.
bool ComesLater(const Candidate& a, const Candidate& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
}

uint64_t PairKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

// The symbols of one piece, and the unknown character that waits to be fused with the next one.
class BpeModel::Word {
 public:
  explicit Word(const BpeModel& model) : model_(model) {}

  void Append(int32_t id) {
    const auto size = static_cast<int32_t>(symbols_.size());
    if (size > 0) symbols_.back().next = size;
    symbols_.push_back({id, size - 1, -1, false});
  }

  // Held back, so that byte-fallback tokens come before it: what `tokenizers` does.
  void HoldUnknown(int32_t unk_id, bool fuse) {
    if (held_unknown_ && !fuse) Append(*held_unknown_);
    held_unknown_ = unk_id;
  }

  void FlushUnknown() {
    if (held_unknown_) Append(*held_unknown_);
    held_unknown_.reset();
  }

  int64_t MergeAll();

  void AppendIds(std::vector<int32_t>* token_ids) const {
    for (const Symbol& symbol : symbols_) {
      if (!symbol.is_merged_away) token_ids->push_back(symbol.id);
    }
  }

 private:
  void AddCandidate(int32_t left, int32_t right) {
    if (left < 0 || right < 0) return;
    const Merge* merge = model_.FindMerge(symbols_[left].id, symbols_[right].id);
    if (merge != nullptr) heap_.push_back({merge->rank, left, merge->merged_id});
  }

  void PushCandidate(int32_t left, int32_t right) {
    const size_t size = heap_.size();
    AddCandidate(left, right);
    if (heap_.size() > size) std::push_heap(heap_.begin(), heap_.end(), ComesLater);
  }

  const BpeModel& model_;
  std::vector<Symbol> symbols_;
  std::vector<Candidate> heap_;
  std::optional<int32_t> held_unknown_;
};

int64_t BpeModel::Word::MergeAll() {
  for (size_t i = 1; i < symbols_.size(); ++i) {
    AddCandidate(static_cast<int32_t>(i) - 1, static_cast<int32_t>(i));
  }
  std::make_heap(heap_.begin(), heap_.end(), ComesLater);
  int64_t num_candidates = 0;
  for (; !heap_.empty(); ++num_candidates) {
    std::pop_heap(heap_.begin(), heap_.end(), ComesLater);
    const Candidate top = heap_.back();
    heap_.pop_back();
    Symbol& left = symbols_[top.position];
    if (left.is_merged_away || left.next < 0) continue;
    Symbol& right = symbols_[left.next];
    // The pair may have changed since it was pushed.
    const Merge* merge = model_.FindMerge(left.id, right.id);
    if (merge == nullptr || merge->merged_id != top.merged_id) continue;

    left.id = top.merged_id;
    left.next = right.next;
    right.is_merged_away = true;
    if (right.next >= 0) symbols_[right.next].previous = top.position;
    PushCandidate(left.previous, top.position);
    PushCandidate(top.position, left.next);
  }
  return num_candidates;
}

BpeModel::BpeModel(const BpeOptions& options, Vocabulary vocabulary)
    : options_(options), vocabulary_(std::move(vocabulary)) {
  for (size_t byte = 0; byte < byte_ids_.size(); ++byte) {
    byte_ids_[byte] =
        Find(options_.byte_level ? ByteCharacters()[byte] : absl::StrFormat("<0x%02X>", byte))
            .value_or(-1);
  }
  if (!options_.ignore_merges || !options_.byte_level) return;
  for (const auto& [token, id] : vocabulary_) {
    if (auto bytes = BytesOfByteLevelToken(token)) whole_pieces_.emplace(*std::move(bytes), id);
  }
}

absl::StatusOr<BpeModel> BpeModel::Create(const BpeOptions& options, Vocabulary vocabulary,
                                          const MergeList& merges) {
  BpeModel model(options, std::move(vocabulary));
  if (!options.unk_token.empty()) {
    model.unk_id_ = model.Find(options.unk_token);
    if (!model.unk_id_) {
      return absl::InvalidArgumentError(
          absl::StrCat("model.unk_token \"", options.unk_token, "\" is not in model.vocab"));
    }
  }
  if (options.byte_level && options.byte_fallback &&
      std::find(model.byte_ids_.begin(), model.byte_ids_.end(), -1) != model.byte_ids_.end()) {
    return absl::InvalidArgumentError(
        "model.byte_fallback with pre-tokenizer ByteLevel and a vocabulary that lacks some bytes");
  }
  TIDAL_RETURN_IF_ERROR(model.AddMerges(merges));
  return model;
}

absl::Status BpeModel::AddMerges(const MergeList& merges) {
  merges_.reserve(merges.size());
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left, right] = merges[rank];
    const std::optional<int32_t> left_id = Find(left);
    const std::optional<int32_t> right_id = Find(right);
    const std::optional<int32_t> merged_id = Find(left + right);
    if (!left_id || !right_id || !merged_id) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "model.merges[%d] (\"%s\", \"%s\"): a part or the whole is not in model.vocab", rank,
          left, right));
    }
    merges_[PairKey(*left_id, *right_id)] = {static_cast<int32_t>(rank), *merged_id};
  }
  return absl::OkStatus();
}

std::optional<int32_t> BpeModel::Find(std::string_view token) const {
  const auto it = vocabulary_.find(token);
  if (it == vocabulary_.end()) return std::nullopt;
  return it->second;
}

const BpeModel::Merge* BpeModel::FindMerge(int32_t left, int32_t right) const {
  const auto it = merges_.find(PairKey(left, right));
  return it == merges_.end() ? nullptr : &it->second;
}

// One character outside a byte-level vocabulary.
void BpeModel::AddCharacter(std::string_view character, Word* word) const {
  if (const std::optional<int32_t> id = Find(character)) {
    word->FlushUnknown();
    word->Append(*id);
    return;
  }
  const auto byte_id = [this](char byte) { return byte_ids_[static_cast<uint8_t>(byte)]; };
  if (options_.byte_fallback && std::all_of(character.begin(), character.end(),
                                            [&](char byte) { return byte_id(byte) >= 0; })) {
    for (const char byte : character) word->Append(byte_id(byte));
    return;
  }
  if (unk_id_) word->HoldUnknown(*unk_id_, options_.fuse_unk);
}

int64_t BpeModel::Encode(std::string_view piece, std::vector<int32_t>* token_ids) const {
  if (options_.ignore_merges) {
    const Vocabulary& pieces = options_.byte_level ? whole_pieces_ : vocabulary_;
    if (const auto it = pieces.find(piece); it != pieces.end()) {
      token_ids->push_back(it->second);
      return 0;
    }
  }
  Word word(*this);
  for (size_t pos = 0; pos < piece.size();) {
    if (!options_.byte_level) {
      const size_t size = Utf8SizeFromLead(piece[pos]);
      AddCharacter(piece.substr(pos, size), &word);
      pos += size;
      continue;
    }
    const int32_t id = byte_ids_[static_cast<uint8_t>(piece[pos++])];
    if (id >= 0) {
      word.FlushUnknown();
      word.Append(id);
    } else if (unk_id_) {
      word.HoldUnknown(*unk_id_, options_.fuse_unk);
    }
  }
  word.FlushUnknown();
  const int64_t num_candidates = word.MergeAll();
  word.AppendIds(token_ids);
  return num_candidates;
}

}  // namespace tidal::tokenization
