#include "server/request_validation.h"

#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "server/status_mapping.h"
#include "tests/engine/fake_tokenizer.h"

namespace tidal::server {
namespace {

using inference::v1::GenerateRequest;
using inference::v1::GenerateStreamRequest;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

constexpr RequestIdentity kNoIdentity;

// Vocabulary: bytes. Prompt and output: 100 tokens together.
class RequestValidationTest : public testing::Test {
 protected:
  RequestValidationTest() : tokenizer_(FakeTokenizer::OfBytes()) {
    context_.tokenizer = &tokenizer_;
    context_.vocab_size = 300;
    context_.max_request_tokens = 100;
    context_.max_text_bytes = MaxTextBytes(tokenizer_, 100);
    context_.default_attention = {
        .mode = AttentionMode::kTidal,
        .selection = {.scope = SelectionScope::kKvHead, .token_budget = 64}};
    context_.has_sparse_layers = true;
  }

  static GenerateRequest Parse(const std::string& text) {
    GenerateRequest message;
    EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &message)) << text;
    return message;
  }

  absl::StatusOr<Request> Validate(const std::string& text) const {
    return ValidateGenerate(Parse(text), context_, {.id = "made", .seed = 77});
  }

  FakeTokenizer tokenizer_;
  ValidationContext context_;
};

TEST_F(RequestValidationTest, FillsInEveryDefault) {
  const absl::StatusOr<Request> request = Validate("text: 'abc'");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->id, "made");
  EXPECT_THAT(request->prompt_token_ids, ElementsAre('a', 'b', 'c'));
  EXPECT_EQ(request->sampling.temperature, 1.0f);
  EXPECT_EQ(request->sampling.top_p, 1.0f);
  EXPECT_EQ(request->sampling.top_k, 0);
  EXPECT_EQ(request->sampling.min_p, 0.0f);
  EXPECT_EQ(request->sampling.repetition_penalty, 1.0f);
  EXPECT_EQ(request->sampling.presence_penalty, 0.0f);
  EXPECT_EQ(request->sampling.frequency_penalty, 0.0f);
  EXPECT_EQ(request->sampling.seed, 77u);
  EXPECT_FALSE(request->sampling.return_logprobs);
  EXPECT_EQ(request->stopping.max_new_tokens, 97);  // the room left
  EXPECT_EQ(request->sampling.min_new_tokens, 0);
  EXPECT_FALSE(request->stopping.ignore_eos);
  EXPECT_EQ(request->attention.mode, AttentionMode::kTidal);
  EXPECT_EQ(request->attention.selection.token_budget, 64);
  EXPECT_TRUE(request->skip_special_tokens);
  EXPECT_EQ(request->priority, 0);
  EXPECT_EQ(request->num_choices, 1);
}

TEST_F(RequestValidationTest, TakesEveryFieldOver) {
  const absl::StatusOr<Request> request = Validate(R"pb(
    request_id: "my request"
    token_ids { ids: [ 1, 299, 0 ] }
    sampling {
      temperature: 0.5
      top_p: 0.25
      top_k: 7
      min_p: 0.125
      repetition_penalty: 1.5
      presence_penalty: -2
      frequency_penalty: 2
      seed: 18446744073709551615
      logit_bias { key: 5 value: -100 }
      logit_bias { key: 2 value: 100 }
    }
    stopping {
      max_new_tokens: 97
      min_new_tokens: 97
      stop_strings: "x"
      stop_strings: "yz"
      stop_token_ids: [ 3, 4 ]
      ignore_eos: true
      include_stop_in_output: true
    }
    output { num_top_logprobs: 20 skip_special_tokens: false }
    attention { mode: ATTENTION_MODE_FULL token_budget: 4096 correction_interval: 0 }
    priority: -100
    cache_salt: "tenant"
    num_choices: 16
  )pb");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->id, "my request");
  EXPECT_THAT(request->prompt_token_ids, ElementsAre(1, 299, 0));
  EXPECT_EQ(request->sampling.temperature, 0.5f);
  EXPECT_EQ(request->sampling.top_p, 0.25f);
  EXPECT_EQ(request->sampling.top_k, 7);
  EXPECT_EQ(request->sampling.min_p, 0.125f);
  EXPECT_EQ(request->sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(request->sampling.presence_penalty, -2.0f);
  EXPECT_EQ(request->sampling.frequency_penalty, 2.0f);
  EXPECT_EQ(request->sampling.seed, std::numeric_limits<uint64_t>::max());
  ASSERT_EQ(request->sampling.logit_bias.size(), 2u);
  EXPECT_EQ(request->sampling.logit_bias[0].token_id, 2);
  EXPECT_EQ(request->sampling.logit_bias[0].bias, 100.0f);
  EXPECT_EQ(request->sampling.logit_bias[1].token_id, 5);
  EXPECT_EQ(request->stopping.max_new_tokens, 97);
  EXPECT_EQ(request->sampling.min_new_tokens, 97);
  EXPECT_THAT(request->stopping.stop_strings, ElementsAre("x", "yz"));
  EXPECT_THAT(request->stopping.stop_token_ids, ElementsAre(3, 4));
  EXPECT_TRUE(request->stopping.ignore_eos);
  EXPECT_TRUE(request->stopping.include_stop_in_output);
  EXPECT_TRUE(request->sampling.return_logprobs);
  EXPECT_EQ(request->sampling.num_top_logprobs, 20);
  EXPECT_FALSE(request->skip_special_tokens);
  EXPECT_EQ(request->attention.mode, AttentionMode::kFull);
  EXPECT_EQ(request->attention.selection.token_budget, 4096);
  EXPECT_EQ(request->priority, -100);
  EXPECT_EQ(request->num_choices, 16);
  EXPECT_EQ(request->cache_salt, "tenant");
}

struct Refusal {
  std::string fields;   // besides the prompt
  std::string message;  // the whole of it
};

class RefusalTest : public RequestValidationTest, public testing::WithParamInterface<Refusal> {};

TEST_P(RefusalTest, NamesFieldValueAndLimit) {
  const absl::StatusOr<Request> request =
      Validate(absl::StrCat("token_ids { ids: 1 } ", GetParam().fields));
  EXPECT_EQ(request.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(request.status().message(), GetParam().message);
}

INSTANTIATE_TEST_SUITE_P(
    AllFields, RefusalTest,
    testing::Values(
        Refusal{"sampling { temperature: -0.5 }", "sampling.temperature: -0.5 is not in [0, 100]"},
        Refusal{"sampling { temperature: 101 }", "sampling.temperature: 101 is not in [0, 100]"},
        Refusal{"sampling { temperature: nan }", "sampling.temperature: nan is not in [0, 100]"},
        Refusal{"sampling { temperature: inf }", "sampling.temperature: inf is not in [0, 100]"},
        Refusal{"sampling { top_p: 1.5 }", "sampling.top_p: 1.5 is not in (0, 1]"},
        Refusal{"sampling { top_p: 0 }", "sampling.top_p: 0 is not in (0, 1]"},
        Refusal{"sampling { top_p: nan }", "sampling.top_p: nan is not in (0, 1]"},
        Refusal{"sampling { top_k: -1 }", "sampling.top_k: -1 is not in [0, 2147483647]"},
        Refusal{"sampling { min_p: -0.5 }", "sampling.min_p: -0.5 is not in [0, 1]"},
        Refusal{"sampling { min_p: 1.5 }", "sampling.min_p: 1.5 is not in [0, 1]"},
        Refusal{"sampling { repetition_penalty: 0 }",
                "sampling.repetition_penalty: 0 is not in (0, 10]"},
        Refusal{"sampling { repetition_penalty: 10.5 }",
                "sampling.repetition_penalty: 10.5 is not in (0, 10]"},
        Refusal{"sampling { presence_penalty: 2.5 }",
                "sampling.presence_penalty: 2.5 is not in [-2, 2]"},
        Refusal{"sampling { frequency_penalty: -2.5 }",
                "sampling.frequency_penalty: -2.5 is not in [-2, 2]"},
        Refusal{"sampling { logit_bias { key: 300 value: 1 } }",
                "sampling.logit_bias: token id 300 is not in [0, 299]"},
        Refusal{"sampling { logit_bias { key: -1 value: 1 } }",
                "sampling.logit_bias: token id -1 is not in [0, 299]"},
        Refusal{"sampling { logit_bias { key: 7 value: 100.5 } }",
                "sampling.logit_bias[7]: 100.5 is not in [-100, 100]"},
        Refusal{"sampling { logit_bias { key: 7 value: nan } }",
                "sampling.logit_bias[7]: nan is not in [-100, 100]"},
        Refusal{"stopping { max_new_tokens: 0 }",
                "stopping.max_new_tokens: 0 is not in [1, 2147483647]"},
        Refusal{"stopping { max_new_tokens: -5 }",
                "stopping.max_new_tokens: -5 is not in [1, 2147483647]"},
        Refusal{
            "stopping { max_new_tokens: 100 }",
            "stopping.max_new_tokens: 100 + the prompt's 1 tokens = 101, more than the 100 that "
            "prompt and output may have together"},
        Refusal{"stopping { min_new_tokens: -1 }",
                "stopping.min_new_tokens: -1 is not in [0, 2147483647]"},
        Refusal{"stopping { max_new_tokens: 5 min_new_tokens: 6 }",
                "stopping.min_new_tokens: 6 is more than max_new_tokens, 5"},
        Refusal{"stopping { stop_strings: 'a' stop_strings: '' }",
                "stopping.stop_strings[1]: has 0 bytes, not in [1, 1024]"},
        Refusal{"stopping { stop_token_ids: [ 1, 2, 300 ] }",
                "stopping.stop_token_ids[2]: 300 is not in [0, 299]"},
        Refusal{"output { num_top_logprobs: 21 }", "output.num_top_logprobs: 21 is not in [0, 20]"},
        Refusal{"output { num_top_logprobs: -1 }", "output.num_top_logprobs: -1 is not in [0, 20]"},
        Refusal{"attention { mode: 17 }", "attention.mode: 17 is not an AttentionMode"},
        Refusal{"attention { token_budget: 0 }", "attention.token_budget: 0 is not in [1, 4096]"},
        Refusal{"attention { token_budget: 4097 }",
                "attention.token_budget: 4097 is not in [1, 4096]"},
        Refusal{"attention { correction_interval: -1 }",
                "attention.correction_interval: -1 is not in [0, 2147483647]"},
        Refusal{"priority: 101", "priority: 101 is not in [-100, 100]"},
        Refusal{"num_choices: 0", "num_choices: 0 is not in [1, 16]"},
        Refusal{"num_choices: 17", "num_choices: 17 is not in [1, 16]"},
        Refusal{absl::StrCat("cache_salt: '", std::string(129, 'x'), "'"),
                "cache_salt: has 129 bytes, more than 128"},
        Refusal{"priority: -101", "priority: -101 is not in [-100, 100]"},
        Refusal{"request_id: 'a\\tb'", "request_id: byte 1 is not printable ASCII"},
        Refusal{"request_id: 'caf\\303\\251'", "request_id: byte 3 is not printable ASCII"}));

TEST_F(RequestValidationTest, RefusesListsLongerThanTheirLimits) {
  GenerateRequest message = Parse("token_ids { ids: 1 }");
  message.set_request_id(std::string(129, 'x'));
  for (int i = 0; i < 17; ++i) message.mutable_stopping()->add_stop_strings("x");
  for (int i = 0; i < 257; ++i) message.mutable_stopping()->add_stop_token_ids(1);
  for (int i = 0; i < 1025; ++i) (*message.mutable_sampling()->mutable_logit_bias())[i] = 1.0f;
  const absl::Status status = ValidateGenerate(message, context_, kNoIdentity).status();
  EXPECT_EQ(status.message(),
            "request_id: has 129 bytes, more than 128; "
            "sampling.logit_bias: has 1025 entries, more than 1024; "
            "stopping.stop_strings: has 17 entries, more than 16; "
            "stopping.stop_token_ids: has 257 entries, more than 256");
}

TEST_F(RequestValidationTest, TakesListsAtTheirLimits) {
  context_.vocab_size = 2000;
  GenerateRequest message = Parse("token_ids { ids: 1 }");
  message.set_request_id(std::string(128, '~'));
  for (int i = 0; i < 16; ++i) message.mutable_stopping()->add_stop_strings(std::string(1024, 'x'));
  for (int i = 0; i < 256; ++i) message.mutable_stopping()->add_stop_token_ids(1);
  for (int i = 0; i < 1024; ++i) (*message.mutable_sampling()->mutable_logit_bias())[i] = 1.0f;
  EXPECT_EQ(ValidateGenerate(message, context_, kNoIdentity).status(), absl::OkStatus());
}

TEST_F(RequestValidationTest, GathersAllViolationsIntoOneBadRequest) {
  const absl::StatusOr<Request> request = Validate(
      "token_ids { ids: [ 1, 300, 400 ] } sampling { top_p: 2 temperature: -1 } priority: 500");
  EXPECT_EQ(request.status().message(),
            "sampling.temperature: -1 is not in [0, 100]; sampling.top_p: 2 is not in (0, 1]; "
            "priority: 500 is not in [-100, 100]; token_ids.ids[1]: 300 is not in [0, 299]");
  google::rpc::BadRequest bad_request;
  ASSERT_TRUE(bad_request.ParseFromString(
      std::string(request.status().GetPayload(kBadRequestTypeUrl).value())));
  ASSERT_EQ(bad_request.field_violations_size(), 4);
  EXPECT_EQ(bad_request.field_violations(1).field(), "sampling.top_p");
  EXPECT_EQ(bad_request.field_violations(1).description(), "2 is not in (0, 1]");
}

TEST_F(RequestValidationTest, CountsViolationsBeyondTheFirst16) {
  GenerateRequest message = Parse("token_ids { ids: 1 }");
  for (int i = 0; i < 20; ++i) (*message.mutable_sampling()->mutable_logit_bias())[i] = 1e9f;
  const absl::Status status = ValidateGenerate(message, context_, kNoIdentity).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("; and 4 more"));
  google::rpc::BadRequest bad_request;
  ASSERT_TRUE(
      bad_request.ParseFromString(std::string(status.GetPayload(kBadRequestTypeUrl).value())));
  EXPECT_EQ(bad_request.field_violations_size(), kMaxViolations);
}

TEST_F(RequestValidationTest, RefusesAMissingPrompt) {
  EXPECT_EQ(Validate("").status().message(), "prompt: is missing: set text or token_ids");
}

TEST_F(RequestValidationTest, RefusesAPromptWithoutTokens) {
  EXPECT_EQ(Validate("token_ids { }").status().message(), "prompt: has no tokens");
  EXPECT_EQ(Validate("text: ''").status().message(), "prompt: has no tokens");
}

TEST_F(RequestValidationTest, RefusesAPromptThatLeavesNoRoom) {
  GenerateRequest message;
  message.set_text(std::string(100, 'a'));
  EXPECT_EQ(ValidateGenerate(message, context_, kNoIdentity).status().message(),
            "prompt: has 100 tokens, which leaves no room to generate: prompt and output may have "
            "100 together");
  message.set_text(std::string(99, 'a'));
  const absl::StatusOr<Request> request = ValidateGenerate(message, context_, kNoIdentity);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->stopping.max_new_tokens, 1);
}

TEST_F(RequestValidationTest, RefusesTextThatCannotFitBeforeTokenisingIt) {
  GenerateRequest message;
  message.set_text(std::string(static_cast<size_t>(context_.max_text_bytes) + 1, 'a'));
  EXPECT_EQ(ValidateGenerate(message, context_, kNoIdentity).status().message(),
            "text: has 25601 bytes, more than the 25600 that 100 tokens can stand for");
}

TEST_F(RequestValidationTest, RefusesATextThatTheTokenizerRefuses) {
  const FakeTokenizer tokenizer({"a"});
  context_.tokenizer = &tokenizer;
  const absl::Status status = Validate("text: 'ab'").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "text: text has no tokens");
}

TEST_F(RequestValidationTest, RefusesTextWhereThereIsNoTokenizer) {
  context_.tokenizer = nullptr;
  EXPECT_EQ(Validate("text: 'a'").status().message(),
            "text: this model has no tokenizer; send token_ids");
  EXPECT_EQ(Validate("token_ids { ids: 1 } stopping { stop_strings: 'a' }").status().message(),
            "stopping.stop_strings: cannot match: this model has no tokenizer, so it yields no "
            "text");
  EXPECT_TRUE(Validate("token_ids { ids: 1 }").ok());
}

TEST_F(RequestValidationTest, TakesQuestAndCorrection) {
  const auto request = Validate(
      "token_ids { ids: 1 } attention { mode: ATTENTION_MODE_QUEST correction_interval: 8 }");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->attention.mode, AttentionMode::kQuest);
  EXPECT_EQ(request->attention.correction_interval, 8);
  context_.default_attention.correction_interval = 4;
  EXPECT_EQ(Validate("token_ids { ids: 1 }")->attention.correction_interval, 4);
  EXPECT_EQ(Validate("token_ids { ids: 1 } attention { correction_interval: 0 }")
                ->attention.correction_interval,
            0);
}

TEST_F(RequestValidationTest, CallsARequestInvalidWhereOneOfItsFaultsIs) {
  GenerateRequest message = Parse("token_ids { ids: 1 } priority: 101");
  message.GetReflection()->MutableUnknownFields(&message)->AddVarint(200, 1);
  const absl::Status status = ValidateGenerate(message, context_, kNoIdentity).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("200"));
}

TEST_F(RequestValidationTest, RefusesFieldsThatItDoesNotKnow) {
  GenerateRequest message = Parse("token_ids { ids: 1 } sampling { top_k: 3 }");
  message.GetReflection()->MutableUnknownFields(&message)->AddVarint(10, 4);
  inference::v1::SamplingParams* sampling = message.mutable_sampling();
  sampling->GetReflection()->MutableUnknownFields(sampling)->AddFixed32(99, 1);
  const absl::Status status = ValidateGenerate(message, context_, kNoIdentity).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(status.message(),
            "field 10: is not known in message GenerateRequest; "
            "field 99: is not known in message SamplingParams");
}

TEST_F(RequestValidationTest, RefusesABudgetBelowWhatSinksAndRecentTokensTake) {
  context_.default_attention.selection.num_sink_tokens = 4;
  context_.default_attention.selection.num_recent_tokens = 8;
  EXPECT_EQ(Validate("token_ids { ids: 1 } attention { token_budget: 11 }").status().message(),
            "attention.token_budget: 11 is less than the 12 positions that the server's "
            "sink_tokens of 4 and recent_tokens of 8 keep");
  EXPECT_TRUE(Validate("token_ids { ids: 1 } attention { token_budget: 12 }").ok());
}

TEST_F(RequestValidationTest, RunsFullWhereNoLayerIsSparse) {
  context_.has_sparse_layers = false;
  const absl::StatusOr<Request> request =
      Validate("token_ids { ids: 1 } attention { mode: ATTENTION_MODE_TIDAL }");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->attention.mode, AttentionMode::kFull);
}

TEST_F(RequestValidationTest, ErrorsHoldNoTextOfThePrompt) {
  const absl::Status status = Validate("text: 'secret' stopping { max_new_tokens: 99 }").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), Not(HasSubstr("secret")));
}

TEST_F(RequestValidationTest, ChecksStreamingRequestsTheSame) {
  GenerateStreamRequest message;
  ASSERT_TRUE(google::protobuf::TextFormat::ParseFromString(
      "token_ids { ids: 300 } sampling { top_p: 2 } priority: 7 cache_salt: 'tenant'", &message));
  EXPECT_EQ(ValidateGenerate(message, context_, kNoIdentity).status().message(),
            "sampling.top_p: 2 is not in (0, 1]; token_ids.ids[0]: 300 is not in [0, 299]");
  message.mutable_sampling()->clear_top_p();
  message.mutable_token_ids()->set_ids(0, 1);
  const absl::StatusOr<Request> request = ValidateGenerate(message, context_, kNoIdentity);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->priority, 7);
  EXPECT_EQ(request->cache_salt, "tenant");
}

TEST_F(RequestValidationTest, ChecksTokenizeAndDetokenize) {
  inference::v1::TokenizeRequest tokenize;
  tokenize.set_text("abc");
  EXPECT_EQ(ValidateTokenize(tokenize, context_), absl::OkStatus());
  tokenize.set_text(std::string(static_cast<size_t>(context_.max_text_bytes) + 1, 'a'));
  EXPECT_EQ(ValidateTokenize(tokenize, context_).code(), absl::StatusCode::kInvalidArgument);

  inference::v1::DetokenizeRequest detokenize;
  detokenize.add_token_ids(255);
  EXPECT_EQ(ValidateDetokenize(detokenize, context_), absl::OkStatus());
  detokenize.add_token_ids(256);
  EXPECT_EQ(ValidateDetokenize(detokenize, context_).message(),
            "token_ids[1]: 256 is not in [0, 255]");
  detokenize.clear_token_ids();
  for (int i = 0; i < 101; ++i) detokenize.add_token_ids(1);
  EXPECT_EQ(ValidateDetokenize(detokenize, context_).message(),
            "token_ids: has 101 entries, more than 100");
}

}  // namespace
}  // namespace tidal::server
