#include "server/trace_context.h"

#include <gtest/gtest.h>

#include <optional>
#include <string>

namespace tidal::server {
namespace {

constexpr char kValid[] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

// kValid with what begins at `begin` replaced.
std::string With(size_t begin, const std::string& text) {
  return std::string(kValid).replace(begin, text.size(), text);
}

TEST(ParseTraceparentTest, TakesWhatIsValid) {
  const std::optional<TraceContext> trace = ParseTraceparent(kValid);
  ASSERT_TRUE(trace.has_value());
  EXPECT_EQ(trace->traceparent, kValid);
  EXPECT_EQ(trace->trace_id, "0af7651916cd43dd8448eb211c80319c");
}

TEST(ParseTraceparentTest, TakesLaterVersionsWithMoreAtTheEnd) {
  EXPECT_TRUE(ParseTraceparent(With(0, "01")).has_value());
  EXPECT_TRUE(ParseTraceparent(With(0, "cc") + "-what-comes").has_value());
  EXPECT_FALSE(ParseTraceparent(With(0, "cc") + "what-comes").has_value());
  EXPECT_FALSE(ParseTraceparent(With(0, "cc") + "-" + std::string(256, 'x')).has_value());
}

TEST(ParseTraceparentTest, IgnoresWhatIsInvalid) {
  const std::string valid = kValid;
  for (const std::string& text :
       {std::string(), valid.substr(1), valid + "-", valid + "-01", valid + " ", With(0, "ff"),
        With(0, "0g"), With(2, "_"), With(3, "0AF7"), With(3, std::string(32, '0')),
        With(36, std::string(16, '0')), With(36, "B7"), With(35, "0"), With(52, "0"),
        With(53, "x1"), With(10, std::string(1, '\0')), With(10, "\n")}) {
    EXPECT_FALSE(ParseTraceparent(text).has_value()) << text;
  }
}

}  // namespace
}  // namespace tidal::server
