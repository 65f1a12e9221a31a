#include "engine/tokenizer/word_characters.h"

#include <cstdlib>
#include <string>
#include <string_view>

#include "engine/tokenizer/unicode_additions.h"
#include "engine/tokenizer/utf8.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace tidal::tokenization {
namespace {

pcre2_code* CompileWordCharacter() {
  std::string pattern = R"([\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{200c}\x{200d})";
  for (const std::string_view category : {"L", "M", "Nd"}) pattern += UnicodeAdditions(category);
  pattern += "]";
  int error = 0;
  size_t error_offset = 0;
  return pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                       PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED, &error, &error_offset, nullptr);
}

}  // namespace

bool IsWordCharacter(char32_t code_point) {
  static const pcre2_code* const code = CompileWordCharacter();
  pcre2_match_data* match_data = pcre2_match_data_create(1, nullptr);
  // A constant pattern and one-pair match data: failure means that memory has run out.
  if (code == nullptr || match_data == nullptr) std::abort();
  std::string character;
  AppendUtf8(code_point, &character);
  const int result = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(character.data()),
                                 character.size(), 0, 0, match_data, nullptr);
  pcre2_match_data_free(match_data);
  return result > 0;
}

}  // namespace tidal::tokenization
