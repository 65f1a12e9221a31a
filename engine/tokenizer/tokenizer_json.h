// Reads Hugging Face's tokenizer.json (BPE with the components that Llama-family checkpoints use).
// Whatever the file has that is not implemented is refused by name. Pure function.
#pragma once

#include <memory>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/tokenizer/tokenizer.h"

namespace tidal {

// `json`: the whole file, of whatever bytes. INVALID_ARGUMENT names the member or component that is
// wrong, unsupported, or beyond a limit of limits.h. Members "truncation" and "padding" are
// ignored: a server's prompt is neither cut nor padded.
absl::StatusOr<std::unique_ptr<Tokenizer>> ParseTokenizerJson(std::string_view json);

}  // namespace tidal
