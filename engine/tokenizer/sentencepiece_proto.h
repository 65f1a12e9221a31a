// A tokenizer.model file: SentencePiece's serialised ModelProto, of which this reads what encoding
// and decoding need. Read by hand, not by libsentencepiece: that library exports symbols of its own
// protobuf, which clash with gRPC's in one process.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace tidal::tokenization {

// Field numbers and values are those of sentencepiece_model.proto.
enum class SentencePieceType : uint8_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

enum class SentencePieceModelType : uint8_t { kUnigram = 1, kBpe = 2, kWord = 3, kChar = 4 };

struct SentencePieceProto {
  struct Piece {
    std::string text;
    float score = 0.0f;
    SentencePieceType type = SentencePieceType::kNormal;
  };

  std::vector<Piece> pieces;  // by id
  // TrainerSpec
  SentencePieceModelType model_type = SentencePieceModelType::kUnigram;
  bool byte_fallback = false;
  bool treat_whitespace_as_suffix = false;
  std::string unknown_surface = " \u2047 ";  // what an unknown piece looks like when decoded
  // NormalizerSpec
  std::string normalizer_name;
  bool has_character_map = false;  // rules that rewrite characters
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
};

// INVALID_ARGUMENT where `serialized` is no ModelProto, or has more pieces than limits.h allows.
absl::StatusOr<SentencePieceProto> ParseSentencePieceProto(std::string_view serialized);

}  // namespace tidal::tokenization
