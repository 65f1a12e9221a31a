// The tokenizers under tests/golden/tokenizers, and what Hugging Face makes of them.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/tokenizer/tokenizer.h"

namespace tidal {

inline std::string FixtureFolder() { return TIDAL_SOURCE_DIR "/tests/golden/tokenizers/"; }

inline std::string ReadWholeFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

// The embedded model's tokenizer lies with the model.
inline std::string TokenizerFolder(const std::string& name) {
  return name == "needle" ? TIDAL_SOURCE_DIR "/models/needle" : FixtureFolder() + name;
}

inline std::unique_ptr<Tokenizer> LoadFixture(const std::string& name) {
  auto tokenizer = LoadTokenizer(TokenizerFolder(name));
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

inline std::vector<std::string> HardTexts() {
  return nlohmann::json::parse(ReadWholeFile(FixtureFolder() + "texts.json"))
      .get<std::vector<std::string>>();
}

// The fixtures by name; the last two are a tokenizer.model.
inline std::vector<std::string> FixtureNames() {
  return {
      "llama3",         "gpt2",   "prefix_space",     "o200k",         "plain_split",
      "llama2_prepend", "needle", "llama2_metaspace", "sentencepiece", "sentencepiece_not_legacy"};
}

}  // namespace tidal
