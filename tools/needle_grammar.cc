#include "tools/needle_grammar.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace tidal {
namespace {

using Words = std::vector<std::string>;

// The lists of grammar.py.
constexpr absl::string_view kAdjectives =
    "golden silver crimson purple wooden broken hidden frozen hollow narrow ancient gentle "
    "bitter clever crooked dusty empty fallen famous foggy grand heavy humble iron jolly "
    "large little lonely lucky misty muddy noble painted patient pretty proud quiet rapid "
    "rusty sacred shallow silent simple sleepy smooth stormy sturdy tiny wild young";

constexpr absl::string_view kNouns =
    "river lantern mountain garden bridge castle cottage desert door dragon falcon farmer "
    "field forest fountain gate hammer horse island kettle kitten ladder lake library meadow "
    "mill mirror monkey needle orchard palace path pigeon pirate pond prince rabbit road "
    "sailor ship soldier station statue temple tower valley wagon wheel window wolf";

constexpr absl::string_view kVerbs =
    "admired avoided bought brought called carried chased cleaned counted covered crossed "
    "drew feared followed forgot found guarded heard helped lifted loved moved noticed passed "
    "repaired saw sold studied visited watched";

constexpr absl::string_view kPeople =
    "Anna Boris Clara David Elena Felix Greta Henry Irene Jacob Karin Louis Maria Nadia Oscar "
    "Paula Quinn Robert Sonia Thomas Ursula Victor Wendy Yusuf";

constexpr absl::string_view kPlaces =
    "bakery barn bay chapel church cinema coast court dock factory ferry hall harbour hill "
    "hospital hotel inn market museum office park school shop square";

constexpr absl::string_view kTimes =
    "again alone always calmly daily early forever gladly later nightly often once slowly "
    "soon today twice";

constexpr absl::string_view kDays = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday";

constexpr absl::string_view kValues =
    "velvet anchor tunnel maple bright acorn album almond amber angle apple apron arrow "
    "autumn badge bagel balloon bamboo banana banjo barrel basil basket beacon beaver berry "
    "blanket blossom bottle bracket branch brass bread brick broom brush bubble bucket butter "
    "button cabin cactus camel candle canoe canvas carbon carpet carrot cedar cello chalk "
    "cherry chess cider circle clay cloud clover cobalt cocoa coffee comet copper coral "
    "cotton cradle crane crater cricket crystal cymbal daisy diamond donut drum eagle echo "
    "elbow ember emerald engine fabric feather fiddle flame flute fossil fox galaxy garlic "
    "ginger glacier glove grape gravel guitar hazel helmet honey igloo ivory jacket jasmine "
    "jelly jungle kayak kernel laser lava leather lemon lilac linen lizard locket lotus "
    "magnet mango marble melon mercury mint mitten mosaic muffin mustard napkin nectar noodle "
    "nutmeg oasis ocean olive onion opal orange orbit orchid otter oyster paddle panda paper "
    "parade parrot peach pearl pebble pencil pepper petal piano pillow planet plum pocket "
    "pollen poppy potato prism puzzle quartz quilt radar radish raven ribbon rocket ruby "
    "saddle salmon sapphire satin saucer scarf shadow shell siren spider spoon spruce "
    "squirrel sugar sunset thunder ticket tiger timber toast tomato tulip turnip turtle "
    "umbrella vanilla violet walnut whistle willow winter yogurt zebra zipper";

constexpr absl::string_view kTemplates[] = {
    "The {adj} {noun} {verb} the {adj} {noun} {time} .",
    "{person} {verb} the {adj} {noun} near the {place} .",
    "On {day} {person} {verb} the {noun} and the {adj} {noun} .",
    "{person} and {person} walked from the {place} to the {place} {time} .",
    "The {noun} of the {place} was {adj} and {adj} .",
    "{person} said that the {noun} was {adj} {time} .",
    "Every {day} the {adj} {noun} stood behind the {place} .",
    "Nobody {verb} the {noun} in the {adj} {place} {time} .",
};

struct Vocabulary {
  Words adjectives = absl::StrSplit(kAdjectives, ' ');
  Words nouns = absl::StrSplit(kNouns, ' ');
  Words verbs = absl::StrSplit(kVerbs, ' ');
  Words people = absl::StrSplit(kPeople, ' ');
  Words places = absl::StrSplit(kPlaces, ' ');
  Words times = absl::StrSplit(kTimes, ' ');
  Words days = absl::StrSplit(kDays, ' ');
  Words values = absl::StrSplit(kValues, ' ');

  // The list behind a template's "{slot}", or null where the word stands for itself.
  const Words* Slot(absl::string_view word) const {
    if (word == "{adj}") return &adjectives;
    if (word == "{noun}") return &nouns;
    if (word == "{verb}") return &verbs;
    if (word == "{person}") return &people;
    if (word == "{place}") return &places;
    if (word == "{time}") return &times;
    if (word == "{day}") return &days;
    return nullptr;
  }
};

const Vocabulary& Grammar() {
  static const Vocabulary vocabulary;
  return vocabulary;
}

// A word keeps a blank before it, a punctuation mark stands alone.
void AppendWord(absl::string_view word, std::string* text) {
  const bool is_mark = word == "." || word == "," || word == ":" || word == "?";
  absl::StrAppend(text, is_mark ? "" : " ", word);
}

std::string Spell(absl::string_view words) {
  std::string text;
  for (const absl::string_view word : absl::StrSplit(words, ' ')) AppendWord(word, &text);
  return text;
}

const std::string& Pick(NeedleRandom* random, const Words& words) {
  return words[random->Index(words.size())];
}

// `count` different results of draw(), in the order in which they came first.
template <typename Draw>
Words DrawDistinct(size_t count, const Draw& draw) {
  Words drawn;
  while (drawn.size() < count) {
    std::string word = draw();
    if (std::find(drawn.begin(), drawn.end(), word) == drawn.end())
      drawn.push_back(std::move(word));
  }
  return drawn;
}

Words DrawValues(NeedleRandom* random, size_t count) {
  return DrawDistinct(count, [&] { return Pick(random, Grammar().values); });
}

std::string DrawValue(NeedleRandom* random) { return absl::StrJoin(DrawValues(random, 5), " "); }

std::string DrawVerse(NeedleRandom* random, size_t num_words) {
  Words words;
  while (words.size() < num_words) {
    const Words more = DrawValues(random, Grammar().values.size());
    words.insert(words.end(), more.begin(), more.end());
  }
  words.resize(num_words);
  return absl::StrJoin(words, " ");
}

std::string DrawSentence(NeedleRandom* random) {
  const size_t index = random->Index(std::size(kTemplates));
  std::string sentence;
  for (const absl::string_view word : absl::StrSplit(kTemplates[index], ' ')) {
    const Words* slot = Grammar().Slot(word);
    AppendWord(slot == nullptr ? word : Pick(random, *slot), &sentence);
  }
  return sentence;
}

std::string Needle(absl::string_view key, absl::string_view value) {
  return Spell(absl::StrCat("The passphrase of the ", key, " is ", value, " ."));
}

struct Task {
  Words facts;
  std::string question;  // with the answer's beginning
  std::string answer;
};

std::string Ask(absl::string_view question, absl::string_view answer_start) {
  return absl::StrCat("\nQuestion:", Spell(question), "?\nAnswer:", Spell(answer_start));
}

Task MakeSeveral(const Words& keys, const Words& values) {
  Words listed;
  Words answers;
  for (size_t i = 0; i < keys.size(); ++i) {
    listed.push_back(absl::StrCat("the ", keys[i]));
    answers.push_back(i == 0 ? values[0]
                             : absl::StrCat("the passphrase of the ", keys[i], " is ", values[i]));
  }
  return {
      .facts = {},
      .question = Ask(absl::StrCat("What are the passphrases of ", absl::StrJoin(listed, " and ")),
                      absl::StrCat("The passphrase of the ", keys[0], " is")),
      .answer = Spell(absl::StrCat(absl::StrJoin(answers, " , and "), " ."))};
}

Task MakeChain(const Words& keys, absl::string_view value) {
  return {.facts = {},
          .question = Ask(absl::StrCat("What is the passphrase of the twin of the ", keys[0]),
                          absl::StrCat("The twin of the ", keys[0], " is")),
          .answer = Spell(absl::StrCat("the ", keys[1], " , and the passphrase of the ", keys[1],
                                       " is ", value, " ."))};
}

Task MakeSingle(absl::string_view noun, absl::string_view key, absl::string_view value) {
  return {.facts = {},
          .question = Ask(absl::StrCat("What is the ", noun, " of the ", key),
                          absl::StrCat("The ", noun, " of the ", key, " is")),
          .answer = Spell(absl::StrCat(value, " ."))};
}

size_t NumKeys(const NeedlePromptOptions& options) {
  if (options.task == NeedleTask::kChain) return 2;
  return options.task == NeedleTask::kSeveral ? static_cast<size_t>(options.size) : 1;
}

// The draws come in grammar.py's order.
Task DrawTask(const NeedlePromptOptions& options, NeedleRandom* random) {
  const size_t num_keys = NumKeys(options);
  const auto num_distractors = static_cast<size_t>(options.num_distractors);
  const Words keys = DrawDistinct(num_keys + num_distractors, [&] {
    const std::string& adjective = Pick(random, Grammar().adjectives);
    return absl::StrCat(adjective, " ", Pick(random, Grammar().nouns));
  });
  const Words asked_keys(keys.begin(), keys.begin() + static_cast<int64_t>(num_keys));
  Task task;
  if (options.task == NeedleTask::kVerse) {
    const std::string words = DrawVerse(random, static_cast<size_t>(options.size));
    task = MakeSingle("verse", keys[0], words);
    task.facts = {Spell(absl::StrCat("The verse of the ", keys[0], " is ", words, " ."))};
  } else {
    Words values;
    Words facts;
    for (const std::string& key : asked_keys) {
      values.push_back(DrawValue(random));
      facts.push_back(Needle(key, values.back()));
    }
    if (options.task == NeedleTask::kSeveral) {
      task = MakeSeveral(asked_keys, values);
    } else if (options.task == NeedleTask::kChain) {
      task = MakeChain(asked_keys, values[1]);
      facts[0] = Spell(absl::StrCat("The twin of the ", keys[0], " is the ", keys[1], " ."));
    } else {
      task = MakeSingle("passphrase", keys[0], values[0]);
    }
    task.facts = std::move(facts);
  }
  for (size_t i = num_keys; i < keys.size(); ++i) {
    task.facts.push_back(Needle(keys[i], DrawValue(random)));
  }
  return task;
}

// Sentences of at most `num_tokens` tokens together.
Words DrawHaystack(int64_t num_tokens, const TokenCounter& count_tokens, const Words& sentences,
                   NeedleRandom* random) {
  Words haystack;
  size_t next = sentences.empty() ? 0 : random->Index(sentences.size());
  while (true) {
    std::string sentence =
        sentences.empty() ? DrawSentence(random) : sentences[next++ % sentences.size()];
    num_tokens -= count_tokens(sentence);
    if (num_tokens < 0) return haystack;
    haystack.push_back(std::move(sentence));
  }
}

// The sentences with fact i put in at depths[i].
std::string Document(const Words& sentences, const Words& facts,
                     const std::vector<double>& depths) {
  std::vector<std::pair<size_t, size_t>> placed;  // sentences before it, fact
  for (size_t i = 0; i < facts.size(); ++i) {
    // Halves go to the even number, as Python rounds.
    const double place = std::nearbyint(depths[i] * static_cast<double>(sentences.size()));
    placed.emplace_back(static_cast<size_t>(place), i);
  }
  std::sort(placed.begin(), placed.end());
  std::string text;
  size_t start = 0;
  for (const auto& [position, fact] : placed) {
    for (; start < position; ++start) text += sentences[start];
    text += facts[fact];
  }
  for (; start < sentences.size(); ++start) text += sentences[start];
  return text.substr(1);
}

// Python's way from an integer to the generator's state (init_by_array of Matsumoto and Nishimura,
// mt19937ar.c, 2002).
struct PythonSeed {
  using result_type = uint32_t;
  uint32_t seed;

  template <typename Iterator>
  void generate(Iterator begin, Iterator end) const {
    constexpr size_t kSize = std::mt19937::state_size;
    std::array<uint32_t, kSize> state;
    state[0] = 19650218u;
    for (size_t i = 1; i < kSize; ++i) {
      state[i] = 1812433253u * (state[i - 1] ^ (state[i - 1] >> 30)) + static_cast<uint32_t>(i);
    }
    size_t i = 1;
    const auto advance = [&] {
      if (++i < kSize) return;
      state[0] = state[kSize - 1];
      i = 1;
    };
    for (size_t step = 0; step < kSize; ++step, advance()) {
      state[i] = (state[i] ^ ((state[i - 1] ^ (state[i - 1] >> 30)) * 1664525u)) + seed;
    }
    for (size_t step = 1; step < kSize; ++step, advance()) {
      state[i] = (state[i] ^ ((state[i - 1] ^ (state[i - 1] >> 30)) * 1566083941u)) -
                 static_cast<uint32_t>(i);
    }
    state[0] = 0x80000000u;
    std::copy_n(state.begin(), std::min<size_t>(kSize, static_cast<size_t>(end - begin)), begin);
  }
};

std::mt19937 MakeTwister(uint32_t seed) {
  PythonSeed sequence{seed};
  return std::mt19937(sequence);
}

constexpr std::pair<NeedleTask, absl::string_view> kTaskNames[] = {
    {NeedleTask::kSingle, "single"},
    {NeedleTask::kSeveral, "several"},
    {NeedleTask::kChain, "chain"},
    {NeedleTask::kVerse, "verse"},
};

}  // namespace

NeedleRandom::NeedleRandom(uint32_t seed) : twister_(MakeTwister(seed)) {}

double NeedleRandom::Uniform() {
  const uint64_t high = twister_() >> 5;
  const uint64_t low = twister_() >> 6;
  return static_cast<double>(high << 26 | low) / 9007199254740992.0;
}

size_t NeedleRandom::Index(size_t count) {
  return static_cast<size_t>(Uniform() * static_cast<double>(count));
}

absl::string_view NeedleTaskName(NeedleTask task) {
  return kTaskNames[static_cast<size_t>(task)].second;
}

absl::StatusOr<NeedleTask> ParseNeedleTask(absl::string_view name) {
  for (const auto& [task, task_name] : kTaskNames) {
    if (task_name == name) return task;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("task '", name, "' is not single, several, chain or verse"));
}

int32_t DefaultNeedleTaskSize(NeedleTask task) {
  if (task == NeedleTask::kVerse) return 64;
  return task == NeedleTask::kSingle ? 1 : 2;
}

NeedlePrompt MakeNeedlePrompt(const NeedlePromptOptions& options, const TokenCounter& count_tokens,
                              const std::vector<std::string>& haystack) {
  NeedleRandom random(options.seed);
  const Task task = DrawTask(options, &random);
  std::vector<double> depths = {options.depth};
  while (depths.size() < task.facts.size()) depths.push_back(random.Uniform());
  int64_t num_tokens_left = int64_t{options.num_tokens} - 1 - count_tokens(task.question);
  for (const std::string& fact : task.facts) num_tokens_left -= count_tokens(fact);
  const Words sentences = DrawHaystack(num_tokens_left, count_tokens, haystack, &random);
  return {Document(sentences, task.facts, depths) + task.question, task.answer};
}

std::string MakeNeedleText(int32_t num_tokens, uint32_t seed, const TokenCounter& count_tokens) {
  NeedleRandom random(seed);
  const std::string text =
      absl::StrJoin(DrawHaystack(num_tokens, count_tokens, /*sentences=*/{}, &random), "");
  return text.substr(std::min<size_t>(1, text.size()));
}

std::vector<std::string> SplitIntoSentences(absl::string_view text) {
  std::vector<std::string> sentences;
  std::string sentence;
  const auto finish = [&] {
    if (!sentence.empty()) sentences.push_back(std::exchange(sentence, ""));
  };
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    for (const absl::string_view word :
         absl::StrSplit(line, absl::ByAnyChar(" \t\r"), absl::SkipEmpty())) {
      absl::StrAppend(&sentence, " ", word);
      if (word.find_last_of(".?!") == word.size() - 1) finish();
    }
    finish();
  }
  return sentences;
}

}  // namespace tidal
