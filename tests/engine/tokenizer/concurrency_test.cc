#include <gtest/gtest.h>

#include <thread>

#include "engine/tokenizer/incremental_detokenizer.h"
#include "tests/engine/tokenizer/fixtures.h"

namespace tidal {
namespace {

class TokenizerConcurrencyTest : public testing::TestWithParam<std::string> {};

TEST_P(TokenizerConcurrencyTest, ThreadsShareATokenizer) {
  const auto tokenizer = LoadFixture(GetParam());
  ASSERT_NE(tokenizer, nullptr);
  const std::vector<std::string> texts = HardTexts();
  std::vector<std::vector<int32_t>> expected;
  for (const std::string& text : texts) expected.push_back(*tokenizer->Encode(text, {}));

  constexpr size_t kNumThreads = 4;
  std::vector<size_t> num_wrong(kNumThreads, 0);
  std::vector<std::thread> threads;
  for (size_t t = 0; t < kNumThreads; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = 0; i < texts.size(); ++i) {
        const size_t index = (i + t * texts.size() / kNumThreads) % texts.size();
        const auto ids = tokenizer->Encode(texts[index], {});
        if (!ids.ok() || *ids != expected[index] || !tokenizer->Decode(*ids, true).ok()) {
          ++num_wrong[t];
        }
        IncrementalDetokenizer detokenizer(tokenizer.get(), true);
        for (const int32_t id : *ids) detokenizer.Append(id);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(num_wrong, std::vector<size_t>(kNumThreads, 0));
}

INSTANTIATE_TEST_SUITE_P(Fixtures, TokenizerConcurrencyTest,
                         testing::Values("llama3", "gpt2", "llama2_metaspace", "sentencepiece"),
                         [](const auto& suite) { return suite.param; });

}  // namespace
}  // namespace tidal
