#include "engine/tokenizer/sentencepiece_proto.h"

#include <bit>
#include <functional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/backend/status_macros.h"
#include "engine/tokenizer/limits.h"

namespace tidal::tokenization {
namespace {

absl::Status Malformed(const char* what) {
  return absl::InvalidArgumentError(absl::StrCat("SentencePiece model: ", what));
}

// One field of a message in protobuf's wire format.
struct WireField {
  uint64_t number = 0;
  uint64_t varint = 0;     // wire type 0, or the bits of type 5
  std::string_view bytes;  // wire type 2
  enum Type : uint8_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 } type = kVarint;
};

bool ReadVarint(std::string_view* input, uint64_t* value) {
  *value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    if (input->empty()) return false;
    const auto byte = static_cast<uint8_t>(input->front());
    input->remove_prefix(1);
    *value |= static_cast<uint64_t>(byte & 0x7F) << shift;
    if (byte < 0x80) return true;
  }
  return false;
}

absl::Status ReadField(std::string_view* input, WireField* field) {
  uint64_t tag = 0;
  if (!ReadVarint(input, &tag) || tag >> 3 == 0) return Malformed("a field's tag is malformed");
  field->number = tag >> 3;
  uint64_t size = 0;
  switch (tag & 7) {
    case WireField::kVarint:
      field->type = WireField::kVarint;
      if (!ReadVarint(input, &field->varint)) return Malformed("a number is malformed");
      return absl::OkStatus();
    case WireField::kFixed64:
      field->type = WireField::kFixed64;
      size = 8;
      break;
    case WireField::kFixed32:
      field->type = WireField::kFixed32;
      size = 4;
      break;
    case WireField::kBytes:
      field->type = WireField::kBytes;
      if (!ReadVarint(input, &size)) return Malformed("a length is malformed");
      break;
    default:
      return Malformed("a field has an unknown wire type");
  }
  if (size > input->size()) return Malformed("a field is longer than the file");
  field->bytes = input->substr(0, size);
  input->remove_prefix(size);
  return absl::OkStatus();
}

using FieldReader = std::function<absl::Status(const WireField&)>;

absl::Status ForEachField(std::string_view message, const FieldReader& read) {
  while (!message.empty()) {
    WireField field;
    TIDAL_RETURN_IF_ERROR(ReadField(&message, &field));
    TIDAL_RETURN_IF_ERROR(read(field));
  }
  return absl::OkStatus();
}

// A field of the wrong wire type is one that this reader does not know.
bool Is(const WireField& field, uint64_t number, WireField::Type type) {
  return field.number == number && field.type == type;
}

float FloatOf(const WireField& field) {
  uint32_t bits = 0;
  for (size_t i = 0; i < 4; ++i) {
    bits |= static_cast<uint32_t>(static_cast<uint8_t>(field.bytes[i])) << (8 * i);
  }
  return std::bit_cast<float>(bits);
}

absl::Status ReadPiece(std::string_view message, SentencePieceProto* proto) {
  if (proto->pieces.size() > static_cast<size_t>(kMaxTokenId)) {
    return absl::InvalidArgumentError(
        absl::StrCat("SentencePiece model: more than ", kMaxTokenId + 1, " pieces"));
  }
  SentencePieceProto::Piece piece;
  TIDAL_RETURN_IF_ERROR(ForEachField(message, [&piece](const WireField& field) {
    if (Is(field, 1, WireField::kBytes)) piece.text = field.bytes;
    if (Is(field, 2, WireField::kFixed32)) piece.score = FloatOf(field);
    if (Is(field, 3, WireField::kVarint)) {
      if (field.varint < 1 || field.varint > 6) return Malformed("a piece has an unknown type");
      piece.type = static_cast<SentencePieceType>(field.varint);
    }
    return absl::OkStatus();
  }));
  proto->pieces.push_back(std::move(piece));
  return absl::OkStatus();
}

absl::Status ReadTrainerSpec(std::string_view message, SentencePieceProto* proto) {
  return ForEachField(message, [proto](const WireField& field) {
    if (Is(field, 3, WireField::kVarint)) {
      if (field.varint < 1 || field.varint > 4) return Malformed("an unknown model_type");
      proto->model_type = static_cast<SentencePieceModelType>(field.varint);
    }
    if (Is(field, 24, WireField::kVarint)) proto->treat_whitespace_as_suffix = field.varint != 0;
    if (Is(field, 35, WireField::kVarint)) proto->byte_fallback = field.varint != 0;
    if (Is(field, 44, WireField::kBytes)) proto->unknown_surface = field.bytes;
    return absl::OkStatus();
  });
}

absl::Status ReadNormalizerSpec(std::string_view message, SentencePieceProto* proto) {
  return ForEachField(message, [proto](const WireField& field) {
    if (Is(field, 1, WireField::kBytes)) proto->normalizer_name = field.bytes;
    if (Is(field, 2, WireField::kBytes)) proto->has_character_map = !field.bytes.empty();
    if (Is(field, 3, WireField::kVarint)) proto->add_dummy_prefix = field.varint != 0;
    if (Is(field, 4, WireField::kVarint)) proto->remove_extra_whitespaces = field.varint != 0;
    if (Is(field, 5, WireField::kVarint)) proto->escape_whitespaces = field.varint != 0;
    return absl::OkStatus();
  });
}

}  // namespace

absl::StatusOr<SentencePieceProto> ParseSentencePieceProto(std::string_view serialized) {
  SentencePieceProto proto;
  TIDAL_RETURN_IF_ERROR(ForEachField(serialized, [&proto](const WireField& field) {
    if (Is(field, 1, WireField::kBytes)) return ReadPiece(field.bytes, &proto);
    if (Is(field, 2, WireField::kBytes)) return ReadTrainerSpec(field.bytes, &proto);
    if (Is(field, 3, WireField::kBytes)) return ReadNormalizerSpec(field.bytes, &proto);
    return absl::OkStatus();
  }));
  return proto;
}

}  // namespace tidal::tokenization
