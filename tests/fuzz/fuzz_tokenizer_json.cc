// libFuzzer: any bytes as a tokenizer.json. What loads must encode text and decode tokens without a
// crash, and its incremental text must be UTF-8.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "engine/tokenizer/incremental_detokenizer.h"
#include "engine/tokenizer/tokenizer_json.h"
#include "engine/tokenizer/utf8.h"

namespace {

using tidal::tokenization::FindMalformedUtf8;

constexpr std::string_view kTexts[] = {
    "",
    "he said: it's 12345 o'clock,\r\n\tisn't it?   ",
    "naïve 中文 हिन्दी 😀\u200d <s></s> ▁▁ <0x0A>",
};

void Check(bool holds) {
  if (!holds) std::abort();
}

void EncodeAndDecode(const tidal::Tokenizer& tokenizer, std::string_view text) {
  for (const bool parses : {false, true}) {
    const auto ids = tokenizer.Encode(text, {true, parses});
    if (!ids.ok()) continue;
    tidal::IncrementalDetokenizer detokenizer(&tokenizer, parses);
    for (const int32_t id : *ids) {
      Check(0 <= id && id < tokenizer.vocab_size());
      Check(!FindMalformedUtf8(detokenizer.Append(id)));
    }
    Check(!FindMalformedUtf8(detokenizer.Flush()));
    const auto decoded = tokenizer.Decode(*ids, parses);
    Check(!decoded.ok() || !FindMalformedUtf8(*decoded));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(bytes), size);
  const auto tokenizer = tidal::ParseTokenizerJson(input);
  if (!tokenizer.ok()) return 0;
  for (const std::string_view text : kTexts) EncodeAndDecode(**tokenizer, text);
  EncodeAndDecode(**tokenizer, input.substr(0, 256));
  return 0;
}
