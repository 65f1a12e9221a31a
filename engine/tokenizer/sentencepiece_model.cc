#include "engine/tokenizer/sentencepiece_model.h"

#include <sentencepiece_processor.h>

namespace tidal::tokenization {
namespace {

SentencePieceModel::Error ToError(const sentencepiece::util::Status& status) {
  if (status.ok()) return std::nullopt;
  return status.ToString();
}

}  // namespace

struct SentencePieceModel::Processor {
  sentencepiece::SentencePieceProcessor processor;
};

SentencePieceModel::SentencePieceModel() : processor_(std::make_unique<Processor>()) {}

SentencePieceModel::~SentencePieceModel() = default;

SentencePieceModel::Error SentencePieceModel::Load(std::string_view serialized_model) {
  return ToError(processor_->processor.LoadFromSerializedProto(serialized_model));
}

SentencePieceModel::Error SentencePieceModel::Encode(std::string_view text,
                                                     std::vector<int32_t>* ids) const {
  return ToError(processor_->processor.Encode(text, ids));
}

SentencePieceModel::Error SentencePieceModel::Decode(const std::vector<std::string>& pieces,
                                                     std::string* text) const {
  return ToError(processor_->processor.Decode(pieces, text));
}

int32_t SentencePieceModel::num_pieces() const { return processor_->processor.GetPieceSize(); }

const std::string& SentencePieceModel::PieceOf(int32_t id) const {
  return processor_->processor.IdToPiece(id);
}

std::optional<int32_t> SentencePieceModel::IdOf(std::string_view piece) const {
  // The unknown token's id stands for every piece that is not there.
  const int32_t id = processor_->processor.PieceToId(piece);
  if (id < 0 || id >= num_pieces() || PieceOf(id) != piece) return std::nullopt;
  return id;
}

bool SentencePieceModel::IsControl(int32_t id) const { return processor_->processor.IsControl(id); }

bool SentencePieceModel::IsByte(int32_t id) const { return processor_->processor.IsByte(id); }

}  // namespace tidal::tokenization
