// Llama-2's tokenizer.model: a SentencePiece model with the behaviour of Hugging Face's (slow)
// LlamaTokenizer around it. Immutable; usable from any thread.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/tokenizer/tokenizer.h"

namespace tidal::tokenization {

// The members of tokenizer_config.json that matter, with LlamaTokenizer's defaults.
struct SentencePieceOptions {
  bool add_bos_token = true;
  bool add_eos_token = false;
  bool add_prefix_space = true;  // before the text, where not legacy
  bool legacy = true;            // a prefix space after each special token too
  std::string bos_token = "<s>";
  std::string eos_token = "</s>";
  std::string unk_token = "<unk>";
};

// `json`: the whole tokenizer_config.json. INVALID_ARGUMENT where one of these members has the
// wrong type, or where the file adds tokens that a tokenizer.model cannot hold.
absl::StatusOr<SentencePieceOptions> ReadSentencePieceOptions(std::string_view json);

// `model`: the whole tokenizer.model, a serialised ModelProto. INVALID_ARGUMENT where it is none,
// where it exceeds a limit of limits.h, or lacks a token that `options` name.
absl::StatusOr<std::unique_ptr<Tokenizer>> ParseSentencePieceModel(
    std::string model, const SentencePieceOptions& options);

}  // namespace tidal::tokenization
