#include "engine/checkpoint/rope.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "engine/checkpoint/model_config.h"
#include "tests/engine/checkpoint/status_expectations.h"

namespace tidal {
namespace {

using nlohmann::json;

absl::StatusOr<RopeConfig> Parse(const json& config) { return ParseRopeConfig(JsonFields(config)); }

json Llama3(const json& changes = json::object()) {
  json rope = {{"rope_type", "llama3"},
               {"factor", 8.0},
               {"low_freq_factor", 1.0},
               {"high_freq_factor", 4.0},
               {"original_max_position_embeddings", 8192}};
  rope.update(changes);
  return rope;
}

TEST(RopeTest, FrequenciesAgreeWithTransformersInEverySpelling) {
  std::ifstream file(TIDAL_SOURCE_DIR "/tests/golden/rope_frequencies.json");
  const json golden = json::parse(file);
  ASSERT_GE(golden.size(), 9u);
  for (const json& rope_case : golden) {
    SCOPED_TRACE(rope_case["name"].get<std::string>());
    const auto config = ParseModelConfig(rope_case["config"].dump());
    ASSERT_TRUE(config.ok()) << config.status();
    const auto& frequencies = config->shape.rope_inverse_frequencies;
    const auto expected = rope_case["inverse_frequencies"].get<std::vector<double>>();
    ASSERT_EQ(frequencies.size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      // transformers computes in float32.
      EXPECT_NEAR(frequencies[i] / expected[i], 1.0, 1e-6) << i;
    }
  }
}

TEST(RopeTest, Llama3KeepsHighFrequenciesAndDividesLowOnes) {
  const RopeConfig plain = {.theta = 500000.0};
  RopeConfig scaled = plain;
  scaled.type = RopeType::kLlama3;
  scaled.factor = 8.0;
  const auto before = RopeInverseFrequencies(plain, 128);
  const auto after = RopeInverseFrequencies(scaled, 128);
  EXPECT_EQ(after.front(), 1.0f);
  EXPECT_FLOAT_EQ(after.back(), before.back() / 8);
  for (size_t i = 0; i < after.size(); ++i) {
    EXPECT_LE(after[i], before[i]);
    EXPECT_GE(after[i] * 1.000001f, before[i] / 8);
  }
}

TEST(RopeTest, AcceptsBothSpellingsAtOnceOnlyWhereTheyAgree) {
  const json linear = {{"type", "linear"}, {"factor", 2.0}};
  EXPECT_TRUE(Parse({{"rope_scaling", linear}, {"rope_parameters", linear}}).ok());
  ExpectInvalid(Parse({{"rope_scaling", linear}, {"rope_parameters", Llama3()}}).status(),
                {"rope_scaling", "rope_parameters"});
}

TEST(RopeTest, InnerThetaWinsOverOuter) {
  const auto rope = Parse({{"rope_theta", 5.0}, {"rope_parameters", {{"rope_theta", 7.0}}}});
  ASSERT_TRUE(rope.ok()) << rope.status();
  EXPECT_EQ(rope->theta, 7.0);
}

TEST(RopeTest, RefusesTypesThatAreNotServedByName) {
  for (const char* type : {"dynamic", "yarn", "longrope", "su", "mrope"}) {
    for (const char* spelling : {"rope_scaling", "rope_parameters"}) {
      ExpectError(Parse({{spelling, {{"rope_type", type}, {"factor", 2.0}}}}).status(),
                  absl::StatusCode::kUnimplemented,
                  {spelling, type, "supported: default, linear, llama3"});
    }
    ExpectError(Parse({{"rope_scaling", {{"type", type}}}}).status(),
                absl::StatusCode::kUnimplemented, {type});
  }
}

TEST(RopeTest, RefusesPartialRotationAndParametersByLayerType) {
  ExpectError(Parse({{"partial_rotary_factor", 0.5}}).status(), absl::StatusCode::kUnimplemented,
              {"partial_rotary_factor is 0.5"});
  ExpectError(Parse({{"rope_parameters", {{"partial_rotary_factor", 0.25}}}}).status(),
              absl::StatusCode::kUnimplemented, {"rope_parameters.partial_rotary_factor"});
  EXPECT_TRUE(Parse({{"partial_rotary_factor", 1.0}}).ok());
  ExpectError(
      Parse({{"rope_parameters", {{"full_attention", {{"rope_type", "default"}}}}}}).status(),
      absl::StatusCode::kUnimplemented, {"rope_parameters.full_attention"});
}

TEST(RopeTest, RefusesMissingOrMalformedParameters) {
  for (const char* field :
       {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}) {
    json rope = Llama3();
    rope.erase(field);
    ExpectInvalid(Parse({{"rope_scaling", rope}}).status(),
                  {"rope_scaling." + std::string(field) + " is missing"});
    for (const json& value : {json(0), json(-8), json(1e300), json("8"), json(true)}) {
      ExpectInvalid(Parse({{"rope_scaling", Llama3({{field, value}})}}).status(),
                    {"rope_scaling." + std::string(field) + " is " + value.dump()});
    }
  }
  ExpectInvalid(Parse({{"rope_scaling", {{"factor", 2.0}}}}).status(),
                {"rope_scaling.rope_type is missing"});
  ExpectInvalid(Parse({{"rope_scaling", {{"type", "linear"}}}}).status(),
                {"rope_scaling.factor is missing"});
  ExpectInvalid(Parse({{"rope_scaling", {{"type", 1}}}}).status(), {"rope_scaling.type is 1"});
  ExpectInvalid(Parse({{"rope_scaling", "linear"}}).status(), {"rope_scaling is \"linear\""});
}

TEST(RopeTest, RefusesEqualFrequencyFactors) {
  ExpectInvalid(Parse({{"rope_scaling", Llama3({{"high_freq_factor", 1.0}})}}).status(),
                {"rope_scaling.high_freq_factor is 1", "above low_freq_factor"});
}

TEST(RopeTest, RefusesThetaOutOfRange) {
  for (const json& theta : {json(0), json(-10000.0), json(1e16), json("10000")}) {
    ExpectInvalid(Parse({{"rope_theta", theta}}).status(), {"rope_theta is " + theta.dump()});
    ExpectInvalid(Parse({{"rope_parameters", {{"rope_theta", theta}}}}).status(),
                  {"rope_parameters.rope_theta is "});
  }
}

}  // namespace
}  // namespace tidal
