#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "engine/checkpoint/safetensors_file.h"
#include "engine/checkpoint/safetensors_header.h"
#include "tests/engine/checkpoint/safetensors_builder.h"
#include "tests/engine/checkpoint/status_expectations.h"
#include "tests/engine/checkpoint/temp_directory.h"

namespace tidal {
namespace {

using nlohmann::json;
using testing::ElementsAre;

absl::StatusOr<SafetensorsHeader> Parse(const std::string& text, uint64_t data_size = 64) {
  return ParseSafetensorsHeader(absl::MakeConstSpan(text.data(), text.size()), data_size);
}

json Entry(const std::string& dtype, const json& shape, const json& offsets) {
  return {{"dtype", dtype}, {"shape", shape}, {"data_offsets", offsets}};
}

absl::Status ErrorOf(const json& entry, uint64_t data_size = 64) {
  return Parse(json({{"w", entry}}).dump(), data_size).status();
}

TEST(SafetensorsHeaderTest, ReadsEntries) {
  const json header = {{"__metadata__", {{"format", "pt"}}},
                       {"a", Entry("F32", {2, 3}, {0, 24})},
                       {"b", Entry("BF16", {4}, {24, 32})},
                       {"scalar", Entry("I64", json::array(), {32, 40})},
                       {"empty", Entry("F16", {0, 7}, {40, 40})}};
  const auto parsed = Parse(header.dump() + "   ");  // writers pad with spaces
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  ASSERT_EQ(parsed->size(), 4u);
  EXPECT_EQ(parsed->at("a").dtype, "F32");
  EXPECT_THAT(parsed->at("a").shape, ElementsAre(2, 3));
  EXPECT_EQ(parsed->at("b").begin, 24u);
  EXPECT_EQ(parsed->at("b").end, 32u);
  EXPECT_TRUE(parsed->at("scalar").shape.empty());
  EXPECT_THAT(parsed->at("empty").shape, ElementsAre(0, 7));
}

TEST(SafetensorsHeaderTest, FieldsMayComeInAnyOrder) {
  EXPECT_TRUE(Parse(R"({"w":{"data_offsets":[0,8],"shape":[2],"dtype":"F32"}})").ok());
  EXPECT_TRUE(Parse(R"({"w":{"shape":[2],"dtype":"F32","data_offsets":[0,8]}})").ok());
}

TEST(SafetensorsHeaderTest, IgnoresMetadataWhateverItHolds) {
  EXPECT_TRUE(Parse(R"({"__metadata__":{"a":{"b":[1,-2,3.5,null,true,"x",{}]},"a":[[]]}})").ok());
  const auto after =
      Parse(R"({"__metadata__":{"dtype":[1]},"w":)" + Entry("F32", {2}, {0, 8}).dump() + "}");
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_EQ(after->size(), 1u);
}

TEST(SafetensorsHeaderTest, KnowsEveryDTypesSize) {
  for (const auto& [dtype, bits] : std::map<std::string, int>{
           {"BOOL", 8},    {"U8", 8},          {"I8", 8},          {"F8_E4M3", 8}, {"F8_E5M2", 8},
           {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},
           {"F16", 16},    {"BF16", 16},       {"I32", 32},        {"U32", 32},    {"F32", 32},
           {"I64", 64},    {"U64", 64},        {"F64", 64},        {"C64", 64},    {"F4", 4},
           {"F6_E2M3", 6}, {"F6_E3M2", 6}}) {
    const int bytes = bits;  // of 8 elements
    EXPECT_TRUE(ErrorOf(Entry(dtype, {8}, {0, bytes})).ok()) << dtype;
    ExpectInvalid(ErrorOf(Entry(dtype, {8}, {0, bytes - 1})), {"\"w\"", dtype, "[8]"});
  }
  EXPECT_EQ(SafetensorsDTypeBits("F31"), 0);
}

TEST(SafetensorsHeaderTest, SubByteTensorsMustFillWholeBytes) {
  EXPECT_TRUE(ErrorOf(Entry("F4", {2, 1}, {0, 1})).ok());
  ExpectInvalid(ErrorOf(Entry("F4", {3}, {0, 1})), {"F4", "[3]"});
  ExpectInvalid(ErrorOf(Entry("F4", {3}, {0, 2})), {"F4", "[3]"});
}

TEST(SafetensorsHeaderTest, UnknownDTypeIsNoErrorUntilUsed) {
  EXPECT_TRUE(ErrorOf(Entry("F3_NEW", {3}, {0, 5})).ok());
  ExpectInvalid(ErrorOf(Entry("F3_NEW", {3}, {0, 65})), {"\"w\"", "[0, 65]", "64"});
}

TEST(SafetensorsHeaderTest, RefusesOffsetsOutOfRangeOrReversed) {
  ExpectInvalid(ErrorOf(Entry("F32", {2}, {60, 68})), {"\"w\"", "[60, 68]", "64 bytes"});
  ExpectInvalid(ErrorOf(Entry("F32", {2}, {8, 0})), {"[8, 0]"});
  ExpectInvalid(ErrorOf(Entry("F32", {0}, {65, 65})), {"[65, 65]"});
  ExpectInvalid(ErrorOf(Entry("F32", {2}, {UINT64_MAX - 7, UINT64_MAX})), {"18446744073709551615"});
  ExpectInvalid(ErrorOf(Entry("F32", {2}, {UINT64_MAX, 7})), {"18446744073709551615"});
}

TEST(SafetensorsHeaderTest, RefusesSizeOtherThanShapeTimesDType) {
  ExpectInvalid(ErrorOf(Entry("F32", {2, 3}, {0, 23})), {"\"w\"", "F32", "[2, 3]", "23 bytes"});
  ExpectInvalid(ErrorOf(Entry("F32", {2, 3}, {0, 25})), {"25 bytes"});
  ExpectInvalid(ErrorOf(Entry("F32", {1}, {0, 0})), {"0 bytes"});
  ExpectInvalid(ErrorOf(Entry("F32", {0}, {0, 4})), {"4 bytes"});
}

TEST(SafetensorsHeaderTest, RefusesShapesWhoseProductOverflows) {
  // 2^32 * 2^32 elements wrap to 0, and 2^62 elements of 4 bytes too.
  ExpectInvalid(ErrorOf(Entry("F32", {4294967296, 4294967296}, {0, 0})), {"4294967296"});
  ExpectInvalid(ErrorOf(Entry("F32", {4611686018427387904}, {0, 0})), {"4611686018427387904"});
  ExpectInvalid(ErrorOf(Entry("U8", {INT64_MAX, 3}, {0, 1})), {"9223372036854775807"});
  ExpectInvalid(ErrorOf(Entry("U8", {UINT64_MAX}, {0, 1})), {"18446744073709551615"});
  // With an extent of 0 there is nothing to overflow.
  EXPECT_TRUE(ErrorOf(Entry("F32", {INT64_MAX, INT64_MAX, 0}, {0, 0})).ok());
}

TEST(SafetensorsHeaderTest, RefusesOverlappingTensors) {
  const json header = {{"a", Entry("F32", {4}, {0, 16})}, {"b", Entry("F32", {4}, {12, 28})}};
  ExpectInvalid(Parse(header.dump()).status(), {"\"a\"", "\"b\"", "overlap"});
  const json nested = {{"a", Entry("F32", {8}, {0, 32})}, {"b", Entry("F32", {1}, {4, 8})}};
  ExpectInvalid(Parse(nested.dump()).status(), {"overlap"});
  const json same = {{"a", Entry("F32", {8}, {0, 32})}, {"b", Entry("F32", {8}, {0, 32})}};
  ExpectInvalid(Parse(same.dump()).status(), {"overlap"});
  const json apart = {{"a", Entry("F32", {4}, {0, 16})}, {"b", Entry("F32", {4}, {48, 64})}};
  EXPECT_TRUE(Parse(apart.dump()).ok());
}

TEST(SafetensorsHeaderTest, RefusesDuplicates) {
  const std::string entry = Entry("F32", {2}, {0, 8}).dump();
  ExpectInvalid(Parse(R"({"w":)" + entry + R"(,"w":)" + entry + "}").status(),
                {"\"w\"", "given twice"});
  ExpectInvalid(Parse(R"({"__metadata__":{},"__metadata__":{}})").status(),
                {"__metadata__", "given twice"});
  ExpectInvalid(
      Parse(R"({"w":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}})").status(),
      {"dtype twice"});
}

TEST(SafetensorsHeaderTest, RefusesEntriesOfOtherForm) {
  for (const char* entry :
       {"null",
        "3",
        "-3",
        "1.5",
        "true",
        "\"x\"",
        "[]",
        "{}",
        R"({"dtype":"F32"})",
        R"({"dtype":"F32","shape":[2]})",
        R"({"dtype":3,"shape":[2],"data_offsets":[0,8]})",
        R"({"dtype":["F32"],"shape":[2],"data_offsets":[0,8]})",
        R"({"dtype":{},"shape":[2],"data_offsets":[0,8]})",
        R"({"dtype":"F32","shape":2,"data_offsets":[0,8]})",
        R"({"dtype":"F32","shape":"2","data_offsets":[0,8]})",
        R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})",
        R"({"dtype":"F32","shape":[2.0],"data_offsets":[0,8]})",
        R"({"dtype":"F32","shape":[[2]],"data_offsets":[0,8]})",
        R"({"dtype":"F32","shape":[{}],"data_offsets":[0,8]})",
        R"({"dtype":"F32","shape":["2"],"data_offsets":[0,8]})",
        R"({"dtype":"F32","shape":[1e999],"data_offsets":[0,8]})",
        R"({"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,8]})",
        R"({"dtype":"F32","shape":[2],"data_offsets":[0]})",
        R"({"dtype":"F32","shape":[2],"data_offsets":[]})",
        R"({"dtype":"F32","shape":[2],"data_offsets":[0,8,16]})",
        R"({"dtype":"F32","shape":[2],"data_offsets":[0,-8]})",
        R"({"dtype":"F32","shape":[2],"data_offsets":{"0":8}})",
        R"({"dtype":"F32","shape":[2],"data_offsets":null})",
        R"({"dtype":"F32","shape":[2],"data_offsets":[0,8],"more":1})",
        R"({"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,2],"data_offsets":[0,8]})"}) {
    const auto parsed = Parse(std::string(R"({"w":)") + entry + "}");
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << entry;
  }
}

TEST(SafetensorsHeaderTest, RefusesTextThatIsNotAJsonObject) {
  for (const char* text :
       {"", " ", "null", "[]", "3", "\"x\"", "{", "}", "{\"w\"", "{\"w\":", "{}x", "{\"\xff\":{}}",
        "{\"w\":{\"dtype\":\"\xc3\x28\"}}", "{\"w\":NaN}"}) {
    const auto parsed = Parse(text);
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(parsed.status().message()), testing::HasSubstr("header")) << text;
  }
}

TEST(SafetensorsHeaderTest, DeepNestingDoesNotExhaustTheStack) {
  const std::string deep(1 << 20, '[');
  EXPECT_FALSE(Parse(deep).ok());
  EXPECT_FALSE(Parse(R"({"__metadata__":{"a":)" + deep).ok());
  std::string objects = R"({"__metadata__":)";
  for (int i = 0; i < 300000; ++i) objects += R"({"a":)";
  EXPECT_FALSE(Parse(objects).ok());
}

TEST(SafetensorsHeaderTest, NamesInMessagesAreCutAndPrintable) {
  const std::string name = "\x01\n" + std::string(5000, 'x');
  const absl::Status status = Parse(json({{name, 1}}).dump()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_LT(status.message().size(), 300u);
  EXPECT_EQ(status.message().find('\n'), absl::string_view::npos);
}

// Whatever the bytes, an accepted header keeps what its declaration promises.
TEST(SafetensorsHeaderTest, MutatedHeadersAreRefusedOrConsistent) {
  const json header = {{"__metadata__", {{"format", "pt"}}},
                       {"a", Entry("F32", {2, 3}, {0, 24})},
                       {"b", Entry("BF16", {4}, {24, 32})},
                       {"c", Entry("U8", {32}, {32, 64})}};
  const std::string valid = header.dump();
  uint32_t state = 7;
  const auto random = [&state](size_t bound) {
    state = state * 1664525u + 1013904223u;
    return (state >> 8) % bound;
  };
  int num_accepted = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string text = valid;
    for (size_t change = 0; change <= random(3); ++change) {
      constexpr std::string_view kBytes = "0123456789-.eE{}[]\",:F\xe2\0";
      const size_t at = random(text.size());
      if (random(3) == 0) {
        text.erase(at, 1 + random(6));
      } else {
        text[at] = kBytes[random(kBytes.size())];
      }
    }
    const auto parsed = Parse(text);
    if (!parsed.ok()) continue;
    ++num_accepted;
    for (const auto& [name, entry] : *parsed) {
      ASSERT_LE(entry.begin, entry.end) << text;
      ASSERT_LE(entry.end, 64u) << text;
      if (entry.dtype != "F32") continue;
      int64_t num_elements = 1;
      for (const int64_t extent : entry.shape) num_elements *= extent;
      ASSERT_EQ(static_cast<uint64_t>(num_elements) * 4, entry.end - entry.begin) << text;
    }
  }
  EXPECT_GT(num_accepted, 100);
}

class SafetensorsFileTest : public testing::Test {
 protected:
  absl::Status OpenError(const std::string& contents) {
    return SafetensorsFile::Open(directory_.Write("f.safetensors", contents)).status();
  }

  TempDirectory directory_;
};

TEST_F(SafetensorsFileTest, GivesTheBytesOfEachTensor) {
  const std::string contents =
      SafetensorsBuilder().Add("odd", "U8", {3}, "abc").Add("w", "F32", {1, 2}, "12345678").Build();
  const auto file = SafetensorsFile::Open(directory_.Write("f.safetensors", contents));
  ASSERT_TRUE(file.ok()) << file.status();
  const SafetensorsEntry* entry = (*file)->Find("w");
  ASSERT_NE(entry, nullptr);
  const auto bytes = (*file)->Bytes(*entry);
  EXPECT_EQ(std::string(bytes.begin(), bytes.end()), "12345678");
  EXPECT_EQ((*file)->Find("x"), nullptr);
}

TEST_F(SafetensorsFileTest, EveryTruncationIsAnErrorThatNamesTheFile) {
  const std::string contents =
      SafetensorsBuilder().Add("a", "F32", {2}, "12345678").Add("b", "F16", {2}, "abcd").Build();
  for (size_t length = 0; length < contents.size(); ++length) {
    SCOPED_TRACE(length);
    ExpectInvalid(OpenError(contents.substr(0, length)), {directory_.path() + "/f.safetensors: "});
  }
  EXPECT_TRUE(OpenError(contents).ok());
}

TEST_F(SafetensorsFileTest, RefusesHeaderLongerThanFile) {
  const std::string header = "{}";
  EXPECT_TRUE(OpenError(ComposeSafetensors(2, header, "")).ok());
  ExpectInvalid(OpenError(ComposeSafetensors(3, header, "")),
                {"header length is 3", "only 2 follow"});
}

TEST_F(SafetensorsFileTest, RefusesHeaderBeyondTheFormatsLimit) {
  for (const uint64_t length :
       {kMaxSafetensorsHeaderBytes + 1, uint64_t{1} << 63, UINT64_MAX - 7, UINT64_MAX}) {
    ExpectInvalid(OpenError(ComposeSafetensors(length, "{}", "")),
                  {"header length is " + std::to_string(length), "at most 100000000"});
  }
}

TEST_F(SafetensorsFileTest, RefusesEmptyHeaderAndGarbage) {
  ExpectInvalid(OpenError(ComposeSafetensors(0, "", "abc")), {"header is not valid JSON"});
  ExpectInvalid(OpenError(ComposeSafetensors(4, std::string(4, '\0'), "")), {"not valid JSON"});
  ExpectInvalid(OpenError("PK\x03\x04 this is a zip archive"), {"header length is "});
}

TEST_F(SafetensorsFileTest, RefusesWhatIsNotARegularFile) {
  ExpectInvalid(SafetensorsFile::Open(directory_.path()).status(),
                {directory_.path(), "not a regular file"});
  const std::string pipe = directory_.path() + "/pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  ExpectInvalid(SafetensorsFile::Open(pipe).status(), {pipe, "not a regular file"});
}

TEST_F(SafetensorsFileTest, MissingFileIsNotFound) {
  ExpectError(SafetensorsFile::Open(directory_.path() + "/none").status(),
              absl::StatusCode::kNotFound, {directory_.path() + "/none"});
}

TEST_F(SafetensorsFileTest, FileThatCannotBeOpenedIsAnErrorThatNamesIt) {
  // A link to itself: unlike a file without permissions, root cannot open it either.
  const std::string path = directory_.path() + "/loop.safetensors";
  std::filesystem::create_symlink(path, path);
  const absl::Status status = SafetensorsFile::Open(path).status();
  EXPECT_FALSE(status.ok());
  ExpectError(status, status.code(), {path, "cannot open"});
}

}  // namespace
}  // namespace tidal
