#include "engine/tokenizer/regex.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/backend/status_macros.h"
#include "engine/tokenizer/regex_syntax.h"
#include "engine/tokenizer/utf8.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace tidal::tokenization {
namespace {

// Steps of one match: greedy runs backtrack over their whole length once or twice, so the limit
// grows with the text; an exponential pattern hits it at once.
constexpr uint64_t kMinMatchSteps = 10'000;
constexpr uint64_t kMatchStepsPerByte = 16;
constexpr uint32_t kHeapLimitKib = 64 * 1024;
constexpr size_t kJitStackStartBytes = 32 * 1024;
constexpr size_t kJitStackMaxBytes = 4 * 1024 * 1024;

std::string ErrorText(int error) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(error, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

}  // namespace

RegexWorkspace::~RegexWorkspace() {
  pcre2_match_data_free(match_data_);
  pcre2_match_context_free(match_context_);
  pcre2_jit_stack_free(jit_stack_);
}

bool RegexWorkspace::Prepare() {
  if (match_data_ == nullptr) match_data_ = pcre2_match_data_create(1, nullptr);
  if (match_context_ == nullptr) match_context_ = pcre2_match_context_create(nullptr);
  if (match_data_ == nullptr || match_context_ == nullptr) return false;
  if (jit_stack_ == nullptr) {
    // Without it (or without JIT) matching uses 32 KiB of the thread's stack.
    jit_stack_ = pcre2_jit_stack_create(kJitStackStartBytes, kJitStackMaxBytes, nullptr);
    if (jit_stack_ != nullptr) pcre2_jit_stack_assign(match_context_, nullptr, jit_stack_);
    pcre2_set_heap_limit(match_context_, kHeapLimitKib);
  }
  return true;
}

void Regex::CodeDeleter::operator()(pcre2_real_code_8* code) const { pcre2_code_free(code); }

absl::StatusOr<Regex> Regex::Compile(std::string_view pattern) {
  TIDAL_ASSIGN_OR_RETURN(const std::string pcre_pattern, PcrePatternFromOniguruma(pattern));
  int error = 0;
  size_t error_offset = 0;
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pcre_pattern.data()), pcre_pattern.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_NO_UTF_CHECK, &error, &error_offset, nullptr);
  if (code == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrFormat("regular expression \"%s\": %s", pattern, ErrorText(error)));
  }
  // Where there is no JIT, pcre2_match interprets: slower, same result.
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
  return Regex(code);
}

absl::Status Regex::Split(std::string_view text, RegexWorkspace* workspace,
                          std::vector<Section>* sections) const {
  if (!workspace->Prepare()) return absl::ResourceExhaustedError("no memory for matching");
  pcre2_match_data* match_data = workspace->match_data_;
  const auto step_limit = static_cast<uint32_t>(std::min<uint64_t>(
      kMinMatchSteps + kMatchStepsPerByte * text.size(), std::numeric_limits<uint32_t>::max()));
  pcre2_set_match_limit(workspace->match_context_, step_limit);

  const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const auto match_from = [&](size_t begin, uint32_t options) {
    return pcre2_match(code_.get(), subject, text.size(), begin, options | PCRE2_NO_UTF_CHECK,
                       match_data, workspace->match_context_);
  };
  size_t covered = 0;  // up to where `sections` reach
  std::optional<size_t> last_match_end;
  for (size_t pos = 0; pos <= text.size();) {
    int result = match_from(pos, 0);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = match_from(pos, PCRE2_NO_JIT);
    if (result == PCRE2_ERROR_NOMATCH) break;
    if (result < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("regular expression of the tokenizer: ", ErrorText(result), " at byte ", pos,
                       " of the text (limit ", step_limit, " steps)"));
    }
    const size_t* match = pcre2_get_ovector_pointer(match_data);
    if (match[0] == match[1] && last_match_end == match[1]) {
      // An empty match right after a match does not count.
      pos += pos < text.size() ? Utf8SizeFromLead(text[pos]) : 1;
      continue;
    }
    if (covered < match[0]) sections->push_back({covered, match[0], false});
    sections->push_back({match[0], match[1], true});
    covered = pos = match[1];
    last_match_end = match[1];
  }
  if (covered < text.size()) sections->push_back({covered, text.size(), false});
  return absl::OkStatus();
}

}  // namespace tidal::tokenization
