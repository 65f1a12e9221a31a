#include "engine/tokenizer/sentencepiece_model.h"

#include <algorithm>
#include <cmath>
#include <queue>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "engine/backend/status_macros.h"
#include "engine/tokenizer/limits.h"
#include "engine/tokenizer/utf8.h"

namespace tidal::tokenization {
namespace {

constexpr std::string_view kSpaceSymbol = "\u2581";

std::optional<uint8_t> ByteOfPiece(std::string_view piece) {
  unsigned value = 0;
  const auto hex_digit = [](char digit) -> int {
    if (digit >= '0' && digit <= '9') return digit - '0';
    if (digit >= 'A' && digit <= 'F') return digit - 'A' + 10;
    return -1;
  };
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece[5] != '>') return std::nullopt;
  for (const char digit : piece.substr(3, 2)) {
    if (hex_digit(digit) < 0) return std::nullopt;
    value = 16 * value + static_cast<unsigned>(hex_digit(digit));
  }
  return static_cast<uint8_t>(value);
}

// Text of byte pieces. Unlike ReplaceMalformedUtf8: one U+FFFD for each byte that is no code
// point's.
std::string TextOfBytes(std::string_view bytes) {
  std::string text;
  while (!bytes.empty()) {
    const Utf8Unit unit = NextUtf8Unit(bytes);
    if (unit.kind == Utf8Kind::kCodePoint) {
      text += bytes.substr(0, unit.size);
    } else {
      for (size_t i = 0; i < unit.size; ++i) text += kReplacementCharacter;
    }
    bytes.remove_prefix(unit.size);
  }
  return text;
}

}  // namespace

// The symbols of one normalised text while they merge: slices of it, in a doubly linked list.
class SentencePieceModel::Merger {
 public:
  Merger(const SentencePieceModel& model, std::string_view text) : model_(model), text_(text) {}

  void Run(std::vector<int32_t>* ids) {
    Split();
    for (int32_t right = 1; right < static_cast<int32_t>(symbols_.size()); ++right) {
      PushCandidate(right - 1, right);
    }
    while (!candidates_.empty()) {
      const Candidate top = candidates_.top();
      candidates_.pop();
      MergeIfCurrent(top);
    }
    Emit(ids);
  }

 private:
  struct Symbol {
    size_t begin = 0;
    size_t size = 0;  // 0 = merged away
    int32_t previous = -1;
    int32_t next = -1;
    bool is_frozen = false;  // user-defined: never merges
  };
  struct Candidate {
    float score;
    int32_t left;
    size_t size;  // of both symbols, as it was: tells whether either has merged since
    // For a heap whose top has the highest score, leftmost first.
    bool operator<(const Candidate& other) const {
      return score != other.score ? score < other.score : left > other.left;
    }
  };

  Symbol& At(int32_t index) { return symbols_[static_cast<size_t>(index)]; }
  std::string_view TextOf(const Symbol& symbol) const {
    return text_.substr(symbol.begin, symbol.size);
  }

  void Split() {
    for (size_t begin = 0; begin < text_.size();) {
      const size_t user_defined_size = model_.UserDefinedPrefix(text_.substr(begin));
      const bool is_frozen = user_defined_size > 0;
      const size_t size = is_frozen ? user_defined_size : Utf8SizeFromLead(text_[begin]);
      const auto index = static_cast<int32_t>(symbols_.size());
      if (index > 0) symbols_.back().next = index;
      symbols_.push_back({begin, size, index - 1, -1, is_frozen});
      begin += size;
    }
  }

  void PushCandidate(int32_t left, int32_t right) {
    if (left < 0 || right < 0 || At(left).is_frozen || At(right).is_frozen) return;
    const size_t size = At(left).size + At(right).size;
    const auto merged = model_.FindMergeable(text_.substr(At(left).begin, size));
    if (!merged) return;
    candidates_.push({model_.Piece(*merged).score, left, size});
    if (model_.Piece(*merged).type == SentencePieceType::kUnused) {
      unused_split_[text_.substr(At(left).begin, size)] = At(left).size;
    }
  }

  void MergeIfCurrent(const Candidate& candidate) {
    Symbol& left = At(candidate.left);
    if (left.size == 0 || left.next < 0) return;
    Symbol& right = At(left.next);
    if (left.size + right.size != candidate.size) return;
    left.size = candidate.size;
    right.size = 0;
    left.next = right.next;
    if (left.next >= 0) At(left.next).previous = candidate.left;
    PushCandidate(left.previous, candidate.left);
    PushCandidate(candidate.left, left.next);
  }

  void Emit(std::vector<int32_t>* ids) const {
    bool follows_unknown = false;
    for (int32_t index = symbols_.empty() ? -1 : 0; index >= 0;) {
      const Symbol& symbol = symbols_[static_cast<size_t>(index)];
      EmitPiece(TextOf(symbol), &follows_unknown, ids);
      index = symbol.next;
    }
  }

  // An unused piece helps others to merge, but is no output: it falls apart as it came together.
  void EmitPiece(std::string_view piece, bool* follows_unknown, std::vector<int32_t>* ids) const {
    const std::optional<int32_t> id = model_.IdOf(piece);
    if (id && model_.Piece(*id).type == SentencePieceType::kUnused) {
      const auto split = unused_split_.find(piece);
      if (split != unused_split_.end()) {
        EmitPiece(piece.substr(0, split->second), follows_unknown, ids);
        EmitPiece(piece.substr(split->second), follows_unknown, ids);
        return;
      }
    }
    const bool is_unknown = !id || *id == model_.unknown_id_;
    if (!is_unknown) {
      ids->push_back(*id);
    } else if (model_.proto_.byte_fallback || !*follows_unknown) {
      model_.AppendUnknown(piece, ids);
    }
    *follows_unknown = is_unknown;
  }

  const SentencePieceModel& model_;
  const std::string_view text_;
  std::vector<Symbol> symbols_;
  std::priority_queue<Candidate> candidates_;
  // Unused piece -> bytes of its left part, as last seen.
  absl::flat_hash_map<std::string_view, size_t, StringHash, std::equal_to<>> unused_split_;
};

absl::Status SentencePieceModel::Load(std::string_view serialized_model) {
  TIDAL_ASSIGN_OR_RETURN(proto_, ParseSentencePieceProto(serialized_model));
  TIDAL_RETURN_IF_ERROR(CheckSupported());
  return IndexPieces();
}

absl::Status SentencePieceModel::CheckSupported() const {
  const auto unsupported = [](absl::string_view what) {
    return absl::InvalidArgumentError(
        absl::StrCat("SentencePiece model: ", what, " is not supported"));
  };
  if (proto_.model_type != SentencePieceModelType::kBpe) {
    return unsupported(absl::StrCat("trainer_spec.model_type ", static_cast<int>(proto_.model_type),
                                    ", other than BPE (2),"));
  }
  if (proto_.has_character_map) {
    return unsupported(
        absl::StrCat("the normalizer '", proto_.normalizer_name, "', other than identity,"));
  }
  if (proto_.treat_whitespace_as_suffix) return unsupported("treat_whitespace_as_suffix");
  return absl::OkStatus();
}

absl::Status SentencePieceModel::IndexPieces() {
  byte_ids_.fill(-1);
  for (int32_t id = 0; id < num_pieces(); ++id) {
    const SentencePieceProto::Piece& piece = Piece(id);
    const auto refuse = [id](absl::string_view what) {
      return absl::InvalidArgumentError(absl::StrCat("SentencePiece model: piece ", id, " ", what));
    };
    if (piece.text.empty() || piece.text.size() > kMaxPieceBytes) {
      return refuse(
          absl::StrCat("has ", piece.text.size(), " bytes, must be 1 to ", kMaxPieceBytes));
    }
    if (FindMalformedUtf8(piece.text)) return refuse("is not UTF-8");
    if (std::isnan(piece.score)) return refuse("has a score that is not a number");
    if (!ids_.emplace(piece.text, id).second) return refuse("stands there twice");
    max_piece_size_ = std::max(max_piece_size_, piece.text.size());
    if (piece.type == SentencePieceType::kUserDefined) {
      max_user_defined_size_ = std::max(max_user_defined_size_, piece.text.size());
    }
    if (piece.type == SentencePieceType::kUnknown) {
      if (unknown_id_ >= 0) return refuse("is a second unknown piece");
      unknown_id_ = id;
    }
    if (piece.type == SentencePieceType::kByte) {
      const std::optional<uint8_t> byte = ByteOfPiece(piece.text);
      if (!byte) return refuse("is of type byte, but not written as <0x..>");
      byte_ids_[*byte] = id;
    }
  }
  if (unknown_id_ < 0) {
    return absl::InvalidArgumentError("SentencePiece model: there is no unknown piece");
  }
  const bool lacks_bytes = std::find(byte_ids_.begin(), byte_ids_.end(), -1) != byte_ids_.end();
  if (proto_.byte_fallback && lacks_bytes) {
    return absl::InvalidArgumentError(
        "SentencePiece model: byte_fallback, but a byte's piece is "
        "missing");
  }
  return absl::OkStatus();
}

std::optional<int32_t> SentencePieceModel::IdOf(std::string_view piece) const {
  const auto it = ids_.find(piece);
  if (it == ids_.end()) return std::nullopt;
  return it->second;
}

std::optional<int32_t> SentencePieceModel::FindMergeable(std::string_view text) const {
  if (text.size() > max_piece_size_) return std::nullopt;
  const std::optional<int32_t> id = IdOf(text);
  if (!id) return std::nullopt;
  switch (Piece(*id).type) {
    case SentencePieceType::kNormal:
    case SentencePieceType::kUserDefined:
    case SentencePieceType::kUnused:
      return id;
    default:
      return std::nullopt;
  }
}

size_t SentencePieceModel::UserDefinedPrefix(std::string_view text) const {
  for (size_t size = std::min(max_user_defined_size_, text.size()); size > 0; --size) {
    const std::optional<int32_t> id = IdOf(text.substr(0, size));
    if (id && Piece(*id).type == SentencePieceType::kUserDefined) return size;
  }
  return 0;
}

std::string SentencePieceModel::Normalize(std::string_view text) const {
  const bool removes_spaces = proto_.remove_extra_whitespaces;
  const std::string_view space = proto_.escape_whitespaces ? kSpaceSymbol : " ";
  if (removes_spaces) text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
  if (text.empty()) return "";
  std::string normalized;
  if (proto_.add_dummy_prefix) normalized += space;
  bool follows_space = removes_spaces;
  for (const char byte : text) {
    const bool is_space = byte == ' ';
    if (is_space && follows_space) continue;
    if (is_space) {
      normalized += space;
    } else {
      normalized += byte;
    }
    follows_space = is_space && removes_spaces;
  }
  while (removes_spaces && normalized.ends_with(space)) {
    normalized.resize(normalized.size() - space.size());
  }
  return normalized;
}

void SentencePieceModel::Encode(std::string_view text, std::vector<int32_t>* ids) const {
  const std::string normalized = Normalize(text);
  Merger(*this, normalized).Run(ids);
}

void SentencePieceModel::AppendUnknown(std::string_view text, std::vector<int32_t>* ids) const {
  if (!proto_.byte_fallback) {
    ids->push_back(unknown_id_);
    return;
  }
  for (const char byte : text) ids->push_back(byte_ids_[static_cast<uint8_t>(byte)]);
}

std::string SentencePieceModel::Decode(const std::vector<std::string>& pieces) const {
  std::string text;
  std::string bytes;  // of the byte pieces since the last other one
  bool is_at_start = true;
  bool stripped_space = false;
  for (const std::string& piece : pieces) {
    const std::optional<int32_t> id = IdOf(piece);
    if (id && IsByte(*id)) {
      bytes += static_cast<char>(*ByteOfPiece(piece));
      continue;
    }
    text += TextOfBytes(std::exchange(bytes, ""));
    if (stripped_space || !text.empty()) is_at_start = false;
    text += DecodePiece(piece, is_at_start, &stripped_space);
  }
  return text + TextOfBytes(bytes);
}

std::string SentencePieceModel::DecodePiece(std::string_view piece, bool is_at_start,
                                            bool* stripped_space) const {
  *stripped_space = false;
  const std::optional<int32_t> id = IdOf(piece);
  if (!id) return std::string(piece);
  if (IsControl(*id)) return "";
  if (*id == unknown_id_) return proto_.unknown_surface;
  const bool strips = proto_.add_dummy_prefix || proto_.remove_extra_whitespaces;
  if (is_at_start && strips && piece.starts_with(kSpaceSymbol)) {
    piece.remove_prefix(kSpaceSymbol.size());
    // Where extra spaces are removed, all that come first are.
    *stripped_space = !proto_.remove_extra_whitespaces;
  }
  return absl::StrReplaceAll(ToAbsl(piece), {{ToAbsl(kSpaceSymbol), " "}});
}

}  // namespace tidal::tokenization
