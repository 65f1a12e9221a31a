// Reads the components of a tokenizer.json that transform texts: normalizer, pre_tokenizer and
// decoder. Every error is INVALID_ARGUMENT and names the component or field.
#pragma once

#include "absl/status/statusor.h"
#include "engine/tokenizer/json_fields.h"
#include "engine/tokenizer/normalizer.h"
#include "engine/tokenizer/pre_tokenizer.h"
#include "engine/tokenizer/token_decoder.h"

namespace tidal::tokenization {

absl::StatusOr<Normalizer> ReadNormalizer(const JsonField& field);
absl::StatusOr<PreTokenizer> ReadPreTokenizer(const JsonField& field);
absl::StatusOr<TokenDecoder> ReadDecoder(const JsonField& field);

// The component's name, its member "type".
absl::StatusOr<std::string> ReadType(const JsonField& field);

}  // namespace tidal::tokenization
