// The texts of models/needle/grammar.py, drawn from the same seeds: haystacks, needles and
// questions with one right answer. Any checkpoint can be asked them, the embedded model was trained
// on them. Pure functions of their arguments.
#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace tidal {

// Draws as Python's random.Random(seed).random() does.
class NeedleRandom {
 public:
  explicit NeedleRandom(uint32_t seed);

  // Uniform in [0, 1), 53 bits.
  double Uniform();
  // Uniform in 0..count - 1.
  size_t Index(size_t count);

 private:
  std::mt19937 twister_;
};

enum class NeedleTask : uint8_t {
  kSingle,   // one fact
  kSeveral,  // `size` facts in one question
  kChain,    // a fact found through another
  kVerse,    // `size` words to be recalled one by one
};

// "single", "several", "chain" or "verse".
absl::string_view NeedleTaskName(NeedleTask task);
// INVALID_ARGUMENT names what there is.
absl::StatusOr<NeedleTask> ParseNeedleTask(absl::string_view name);
// What grammar.py takes where nothing is said.
int32_t DefaultNeedleTaskSize(NeedleTask task);

struct NeedlePrompt {
  std::string text;    // document, question, and how the answer begins
  std::string answer;  // the right continuation
};

struct NeedlePromptOptions {
  NeedleTask task = NeedleTask::kSingle;
  int32_t size = 1;        // of kSeveral (facts, 2 or more) and kVerse (words)
  int32_t num_tokens = 0;  // of the prompt, at most; a sentence fewer at least
  double depth = 0.5;      // of the first fact, 0 = start of the document; others lie anywhere
  uint32_t seed = 0;
  int32_t num_distractors = 0;  // facts of other keys
};

// Tokens of a piece of text that begins with a blank.
using TokenCounter = std::function<int32_t(absl::string_view text)>;

// The document is of sentences of the grammar, or of `haystack`'s in their order from a random one
// on, each of which begins with a blank. Where the question and the facts leave no room there is no
// document.
NeedlePrompt MakeNeedlePrompt(const NeedlePromptOptions& options, const TokenCounter& count_tokens,
                              const std::vector<std::string>& haystack = {});

// Sentences of the grammar, at most `num_tokens` tokens together: a text without questions.
std::string MakeNeedleText(int32_t num_tokens, uint32_t seed, const TokenCounter& count_tokens);

// Cuts a text after full stops, question and exclamation marks that end a word, and at ends of
// lines. Each sentence begins with one blank; empty ones are left out.
std::vector<std::string> SplitIntoSentences(absl::string_view text);

}  // namespace tidal
