// What tokenizer files and texts may hold at most, besides the bounds on all JSON. Real files stay
// far below: Llama-3's tokenizer.json has 9 MB and 128,256 tokens.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tidal::tokenization {

inline constexpr size_t kMaxTokenizerFileBytes = size_t{64} << 20;
inline constexpr int32_t kMaxTokenId = (1 << 20) - 1;
inline constexpr size_t kMaxPieceBytes = 1024;    // of a SentencePiece model
inline constexpr size_t kMaxSteps = 16;           // of a Sequence, its nested ones included
inline constexpr size_t kMaxLiteralBytes = 64;    // what is prepended, replaced, stripped
inline constexpr size_t kMaxTemplateTokens = 16;  // that a post-processor adds
inline constexpr size_t kMaxTextBytes = size_t{64} << 20;

}  // namespace tidal::tokenization
