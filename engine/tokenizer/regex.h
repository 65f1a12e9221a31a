// A compiled regular expression (PCRE2 with JIT, UTF and Unicode properties) that cuts a text into
// matches and what lies between them, as Oniguruma's find_iter does. Immutable after Compile and
// usable from any thread, each with its own RegexWorkspace.
#pragma once

#include <cstddef>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

struct pcre2_real_code_8;
struct pcre2_real_match_data_8;
struct pcre2_real_match_context_8;
struct pcre2_real_jit_stack_8;

namespace tidal::tokenization {

// A part of a text, in bytes.
struct Section {
  size_t begin;
  size_t end;
  bool is_match;
};

// Memory that matching needs; made on first use. One thread at a time.
class RegexWorkspace {
 public:
  RegexWorkspace() = default;
  RegexWorkspace(const RegexWorkspace&) = delete;
  RegexWorkspace& operator=(const RegexWorkspace&) = delete;
  ~RegexWorkspace();

 private:
  friend class Regex;

  // False where memory ran out.
  bool Prepare();

  pcre2_real_match_data_8* match_data_ = nullptr;
  pcre2_real_match_context_8* match_context_ = nullptr;
  pcre2_real_jit_stack_8* jit_stack_ = nullptr;
};

class Regex {
 public:
  // INVALID_ARGUMENT where the pattern (Oniguruma's syntax, UTF-8) is malformed or unsupported.
  static absl::StatusOr<Regex> Compile(std::string_view pattern);

  // Appends sections that cover `text` (well-formed UTF-8) without gaps, in order.
  // INVALID_ARGUMENT where matching takes more steps than is proportionate to the text.
  absl::Status Split(std::string_view text, RegexWorkspace* workspace,
                     std::vector<Section>* sections) const;

 private:
  struct CodeDeleter {
    void operator()(pcre2_real_code_8* code) const;
  };

  explicit Regex(pcre2_real_code_8* code) : code_(code) {}

  std::unique_ptr<pcre2_real_code_8, CodeDeleter> code_;
};

}  // namespace tidal::tokenization
