// A SentencePiece BPE model (Kudo and Richardson, arXiv 1808.06226): normalises a text's spaces,
// merges neighbouring pieces by score, and turns pieces back into text, as libsentencepiece does.
// Immutable after Load; usable from any thread.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "engine/tokenizer/sentencepiece_proto.h"
#include "engine/tokenizer/string_map.h"

namespace tidal::tokenization {

class SentencePieceModel {
 public:
  // `serialized_model`: a whole tokenizer.model. INVALID_ARGUMENT where it is malformed, or names
  // what of it is not supported: other models than BPE, character maps, spaces as suffixes.
  absl::Status Load(std::string_view serialized_model);

  // Appends the ids of `text`, which is well-formed UTF-8. Takes O(n log n) time.
  void Encode(std::string_view text, std::vector<int32_t>* ids) const;

  // The text of `pieces`; one that is no piece of the model stands for itself.
  std::string Decode(const std::vector<std::string>& pieces) const;

  // Ids are 0..num_pieces() - 1.
  int32_t num_pieces() const { return static_cast<int32_t>(proto_.pieces.size()); }
  const std::string& PieceOf(int32_t id) const { return Piece(id).text; }
  std::optional<int32_t> IdOf(std::string_view piece) const;
  bool IsControl(int32_t id) const { return Piece(id).type == SentencePieceType::kControl; }
  bool IsByte(int32_t id) const { return Piece(id).type == SentencePieceType::kByte; }

 private:
  class Merger;

  const SentencePieceProto::Piece& Piece(int32_t id) const {
    return proto_.pieces[static_cast<size_t>(id)];
  }
  absl::Status CheckSupported() const;
  absl::Status IndexPieces();

  // Spaces stripped, collapsed, prefixed and escaped as the model asks.
  std::string Normalize(std::string_view text) const;
  // Bytes of the longest user-defined piece that `text` starts with; 0 = none.
  size_t UserDefinedPrefix(std::string_view text) const;
  // A piece that text can merge into: not control, unknown or byte.
  std::optional<int32_t> FindMergeable(std::string_view text) const;
  void AppendUnknown(std::string_view text, std::vector<int32_t>* ids) const;
  std::string DecodePiece(std::string_view piece, bool is_at_start, bool* stripped_space) const;

  SentencePieceProto proto_;
  StringMap<int32_t> ids_;             // of every piece
  std::array<int32_t, 256> byte_ids_;  // of "<0x00>".."<0xFF>"; -1 = none
  int32_t unknown_id_ = -1;
  size_t max_piece_size_ = 0;         // bytes
  size_t max_user_defined_size_ = 0;  // bytes; 0 = no user-defined pieces
};

}  // namespace tidal::tokenization
