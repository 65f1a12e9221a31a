// Needle measurements: their texts, scores, result files and reports, and the whole way over the
// embedded model.
#include "tools/needle_eval.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_split.h"
#include "tools/needle_grammar.h"
#include "tools/needle_report.h"
#include "tools/perplexity_eval.h"
#include "tools/progress_bar.h"
#include "tools/result_log.h"

namespace tidal {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

int32_t CountWords(absl::string_view text) {
  return static_cast<int32_t>(
      std::vector<absl::string_view>(absl::StrSplit(text, absl::ByAnyChar(" ."), absl::SkipEmpty()))
          .size());
}

// A file of this test's own.
std::string FreshPath(const std::string& name) {
  const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
  const std::string folder = ::testing::TempDir() + "/" + test->test_suite_name() + "." +
                             test->name() + "." + std::to_string(::getpid());
  std::filesystem::create_directories(folder);
  std::filesystem::remove(folder + "/" + name);
  return folder + "/" + name;
}

TEST(NeedleRandomTest, DrawsPythonsNumbers) {
  // random.Random(7).random(), and of 5000000.
  NeedleRandom seven(7);
  EXPECT_EQ(seven.Uniform(), 0.32383276483316237);
  EXPECT_EQ(seven.Uniform(), 0.15084917392450192);
  EXPECT_EQ(NeedleRandom(5'000'000).Uniform(), 0.30479403100500047);
}

TEST(NeedleGrammarTest, PutsTheFactAtItsDepthAndAsksForIt) {
  const auto prompt_at = [](double depth) {
    return MakeNeedlePrompt({.num_tokens = 300, .depth = depth, .seed = 3}, CountWords);
  };
  const NeedlePrompt first = prompt_at(0);
  EXPECT_THAT(first.text, StartsWith("The passphrase of the "));
  EXPECT_THAT(prompt_at(1).text, HasSubstr(first.answer + "\nQuestion:"));
  EXPECT_THAT(first.text, AllOf(HasSubstr(first.answer), EndsWith(" is")));
  EXPECT_LE(CountWords(first.text), 300);
  EXPECT_GT(CountWords(first.text), 270);
}

TEST(NeedleGrammarTest, HidesFactsInSentencesOfAnotherText) {
  const std::vector<std::string> haystack = SplitIntoSentences("One is  here.\nTwo\n\nThree? Four");
  EXPECT_THAT(haystack, ElementsAre(" One is here.", " Two", " Three?", " Four"));
  const NeedlePrompt prompt =
      MakeNeedlePrompt({.num_tokens = 200, .seed = 3}, CountWords, haystack);
  EXPECT_THAT(prompt.text, AllOf(HasSubstr("Two Three? Four One is here."),
                                 HasSubstr(prompt.answer), HasSubstr("\nQuestion: What is")));
}

TEST(ScoreAnswerTest, CountsWordsUpToTheFirstWrongOne) {
  const auto score = [](absl::string_view output) {
    return ScoreAnswer(" velvet anchor maple.", output).num_correct_words;
  };
  EXPECT_EQ(ScoreAnswer(" velvet anchor maple.", "").num_words, 3);
  EXPECT_EQ(score(" velvet anchor maple. The"), 3);
  EXPECT_EQ(score("velvet\nanchor  maple"), 3);
  EXPECT_EQ(score(" velvet tunnel maple."), 1);
  EXPECT_EQ(score(" velvet"), 1);
  EXPECT_EQ(score(""), 0);
}

TEST(ResultLogTest, ContinuesAnInterruptedFile) {
  const std::string path = FreshPath("results.jsonl");
  const nlohmann::json settings = {{"seed", 1}};
  ASSERT_TRUE((*ResultLog::Open(path, settings))->Append({{"case", 0}}).ok());
  std::ofstream(path, std::ios::app) << "{\"case\": 1, \"torn";
  {
    const auto log = ResultLog::Open(path, settings);
    ASSERT_TRUE(log.ok()) << log.status();
    EXPECT_THAT((*log)->results(), ElementsAre(nlohmann::json{{"case", 0}}));
    ASSERT_TRUE((*log)->Append({{"case", 2}}).ok());
  }
  const auto log = ResultLog::Open(path, settings);
  ASSERT_TRUE(log.ok()) << log.status();
  EXPECT_EQ((*log)->results().size(), 2u);
}

TEST(ResultLogTest, RefusesOtherSettingsAndBrokenLines) {
  const std::string path = FreshPath("results.jsonl");
  ASSERT_TRUE(ResultLog::Open(path, {{"seed", 1}}).ok());
  EXPECT_THAT(ResultLog::Open(path, {{"seed", 2}}).status().message(),
              HasSubstr("made with other settings"));
  std::ofstream(path, std::ios::app) << "[1]\n";
  EXPECT_THAT(ResultLog::Open(path, {{"seed", 1}}).status().message(),
              HasSubstr(":2: is not a JSON object"));
}

NeedleResult MakeResult(const std::string& method, int32_t budget, double depth, int32_t correct) {
  return {.task = "single",
          .num_context_tokens = 1000,
          .depth = depth,
          .method = method,
          .token_budget = budget,
          .num_prompt_tokens = 990,
          .num_words = 5,
          .num_correct_words = correct,
          .output = "x"};
}

TEST(NeedleReportTest, TellsMethodsByBudgets) {
  const std::vector<NeedleResult> results = {
      MakeResult("full", 0, 0, 5),     MakeResult("TD+L5", 64, 0, 5),
      MakeResult("TD+L5", 32, 0, 4),   MakeResult("full", 0, 0.5, 5),
      MakeResult("TD+L5", 64, 0.5, 5), MakeResult("TD+L5", 32, 0.5, 5)};
  std::ostringstream table;
  PrintNeedleTables(results, &table);
  EXPECT_EQ(table.str(),
            "single needle, 1000 tokens, 2 prompts: per cent found\n"
            "method     K=32     K=64\n"
            "full      100.0    100.0\n"
            "TD+L5      50.0    100.0\n\n");
  const nlohmann::json summary = NeedleSummary(results);
  ASSERT_EQ(summary.size(), 3u);
  EXPECT_EQ(summary[2]["found"], 1);
  EXPECT_EQ(summary[2]["depths"][1], (nlohmann::json{{"depth", 0.5}, {"found", 1}, {"cases", 1}}));
  const std::string svg = NeedleHeatMapSvg(results);
  EXPECT_THAT(svg, AllOf(StartsWith("<svg "), EndsWith("</svg>\n"), HasSubstr("TD+L5, K=32")));
}

TEST(NeedleResultTest, SurvivesJson) {
  const NeedleResult result = MakeResult("full", 0, 0.25, 3);
  const auto read = NeedleResultFromJson(ToJson(result));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(ToJson(*read), ToJson(result));
  EXPECT_FALSE(read->found());
  EXPECT_THAT(NeedleResultFromJson({{"task", "single"}}).status().message(),
              HasSubstr("no result of a needle"));
}

TEST(ProgressBarTest, LogsEveryTenthWhereThereIsNoTerminal) {
  std::ostringstream out;
  ProgressBar bar(20, /*is_terminal=*/false, &out);
  for (int64_t done = 2; done <= 20; ++done) bar.Update(done);
  const std::string text = out.str();
  EXPECT_THAT(text, AllOf(StartsWith("2/20\n"), EndsWith("20/20\n")));
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 10);
}

class EvalMethodTest : public ::testing::Test {
 protected:
  const LayerPlan plan_ = *LayerPlan::Create(8, {});
};

TEST_F(EvalMethodTest, NamesPlansAsThePaperDoes) {
  const auto methods = MakeEvalMethods({.plan = plan_, .reselection_layers = {5, 7}});
  ASSERT_TRUE(methods.ok()) << methods.status();
  ASSERT_EQ(methods->size(), 3u);
  EXPECT_EQ((*methods)[0].name, "full");
  EXPECT_EQ((*methods)[1].name, "TD+L5");
  EXPECT_THAT((*methods)[2].plan.LayersWithRole(LayerRole::kSelect), ElementsAre(2, 7));
  EXPECT_EQ(NameOfPlan(*LayerPlan::Create(
                8, {.full_layers = {{0, 1, 4}}, .selection_layers = {{2, 5, 6}}})),
            "TD full 0,1,4 select 2,5,6");
}

TEST_F(EvalMethodTest, MeasuresQuestAndEachCorrectionInterval) {
  const auto methods = MakeEvalMethods(
      {.methods = {"quest", "tidal"}, .plan = plan_, .correction_intervals = {0, 4}});
  ASSERT_TRUE(methods.ok()) << methods.status();
  std::vector<std::string> names;
  for (const EvalMethod& method : *methods) names.push_back(method.name);
  EXPECT_THAT(names, ElementsAre("quest", "quest C4", "TD+L3", "TD+L3 C4"));
  EXPECT_EQ((*methods)[1].mode, AttentionMode::kQuest);
  EXPECT_EQ((*methods)[3].correction_interval, 4);
}

TEST_F(EvalMethodTest, RefusesWhatIsNoMethodAndNoLayer) {
  EXPECT_THAT(MakeEvalMethods({.methods = {"best"}, .plan = plan_}).status().message(),
              HasSubstr("'best'"));
  EXPECT_THAT(MakeEvalMethods({.plan = plan_, .reselection_layers = {8}}).status().message(),
              HasSubstr("layer 8 is not in 0..7"));
}

class EmbeddedModelTest : public ::testing::Test {
 protected:
  static ServingModel Load() {
    absl::StatusOr<ServingModel> model =
        LoadServingModel({.model_path = std::string(TIDAL_SOURCE_DIR) + "/models/needle",
                          .device = Device::kCpu,
                          .cpu_threads = 1,
                          .max_model_len = 1024,
                          .max_running_requests = 2,
                          .layer_plan = {.full_layers = {{0, 1}}, .selection_layers = {{2, 5}}}});
    EXPECT_TRUE(model.ok()) << model.status();
    return *std::move(model);
  }

  ServingModel model_ = Load();
};

TEST_F(EmbeddedModelTest, FindsNeedlesAndRunsNoFinishedCellAgain) {
  const auto methods = MakeEvalMethods({.plan = model_.plan});
  ASSERT_TRUE(methods.ok()) << methods.status();
  NeedleGrid grid = {.tasks = {{NeedleTask::kSingle, 1}},
                     .contexts = {400},
                     .depths = {0, 0.5},
                     .token_budgets = {64, 256},
                     .methods = *methods,
                     .num_cases = 2,
                     .seed = 11,
                     .selection = {.scope = SelectionScope::kKvHead}};
  EXPECT_EQ(NumNeedleResults(grid), 12);
  const std::string path = FreshPath("results.jsonl");
  int64_t num_done = 0;
  const auto run = [&] {
    const auto log = ResultLog::Open(path, nlohmann::json::object());
    EXPECT_TRUE(log.ok()) << log.status();
    auto results = RunNeedleGrid(&model_, grid, log->get(), [&](int64_t done) { num_done = done; });
    EXPECT_TRUE(results.ok()) << results.status();
    return std::make_pair(*std::move(results), (*log)->results().size());
  };
  const auto [results, num_lines] = run();
  EXPECT_EQ(num_done, 12);
  EXPECT_EQ(num_lines, 12u);
  for (const NeedleResult& result : results) {
    EXPECT_TRUE(result.found()) << result.method << " " << result.token_budget << result.output;
    EXPECT_LE(result.num_prompt_tokens, 400);
  }
  grid.token_budgets.push_back(128);
  const auto [more, num_more_lines] = run();
  EXPECT_EQ(more.size(), 16u);
  EXPECT_EQ(num_more_lines, 16u);
}

TEST_F(EmbeddedModelTest, PerplexityRisesWhereTheBudgetIsSmall) {
  const auto count_tokens = CountTokensOf(model_.tokenizer.get());
  const auto token_ids = model_.tokenizer->Encode(MakeNeedleText(600, 5, count_tokens), {});
  ASSERT_TRUE(token_ids.ok()) << token_ids.status();
  const auto methods = MakeEvalMethods({.plan = model_.plan});
  ASSERT_TRUE(methods.ok()) << methods.status();
  PerplexityOptions options = {.contexts = {400},
                               .num_tokens = 100,
                               .token_budgets = {8, 600},
                               .methods = *methods,
                               .selection = {.scope = SelectionScope::kKvHead}};
  const auto results = MeasurePerplexity(&model_, *token_ids, options, [](int64_t) {});
  ASSERT_TRUE(results.ok()) << results.status();
  ASSERT_EQ(results->size(), 3u);
  EXPECT_GT((*results)[1].perplexity, (*results)[0].perplexity);
  EXPECT_EQ((*results)[2].perplexity, (*results)[0].perplexity) << "the budget covers the context";
  options.num_tokens = 300;
  EXPECT_THAT(MeasurePerplexity(&model_, *token_ids, options, [](int64_t) {}).status().message(),
              HasSubstr("the text has"));
}

}  // namespace
}  // namespace tidal
