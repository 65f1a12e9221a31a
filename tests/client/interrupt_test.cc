// What ends a stream from outside: Ctrl-C, and a reader of standard output that goes away.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <functional>
#include <streambuf>
#include <utility>

#include "client/command/client_program.h"
#include "client/command/interrupt_watcher.h"
#include "tests/client/fake_server.h"

namespace tidal::client {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(60);

// Calls a function at every flush, which says whether the reader is still there.
class WatchedBuffer final : public std::streambuf {
 public:
  explicit WatchedBuffer(std::function<bool()> on_flush) : on_flush_(std::move(on_flush)) {}

 protected:
  int_type overflow(int_type character) override { return character; }
  std::streamsize xsputn(const char* /*text*/, std::streamsize size) override { return size; }
  int sync() override { return on_flush_() ? 0 : -1; }

 private:
  std::function<bool()> on_flush_;
};

ExitCode StreamForEver(FakeServer& server, CallCanceller& canceller, std::function<bool()> on_flush,
                       std::string* errors) {
  server.inference().events = {DeltaEvent("a", 1)};
  server.inference().hold_stream_open = true;
  std::istringstream in;
  WatchedBuffer buffer(std::move(on_flush));
  std::ostream out(&buffer);
  std::ostringstream err;
  Console console{in, out, err};
  const std::vector<std::string> arguments = {"generate", "prompt"};
  const ExitCode exit_code = RunClientProgram(
      arguments, console,
      [&server](const std::string&, const ChannelOptions&) { return server.MakeChannel(); },
      canceller);
  *errors = err.str();
  return exit_code;
}

TEST(InterruptTest, SignalCancelsTheCallAtTheServer) {
  CallCanceller canceller;
  const InterruptWatcher watcher(canceller);
  FakeServer server;
  std::string errors;
  const ExitCode exit_code = StreamForEver(
      server, canceller, [] { return kill(getpid(), SIGINT) == 0; }, &errors);
  EXPECT_EQ(exit_code, ExitCode::kInterrupted);
  EXPECT_EQ(errors, "tidal-client: interrupted\n");
  EXPECT_TRUE(server.inference().stream_cancelled.WaitForNotificationWithTimeout(kPatience));
}

TEST(InterruptDeathTest, SignalWithoutACallEndsTheProcess) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        CallCanceller canceller;
        const InterruptWatcher watcher(canceller);
        kill(getpid(), SIGINT);
        for (;;) pause();
      },
      ::testing::ExitedWithCode(130), "");
}

TEST(BrokenPipeTest, CancelsTheCallWithoutAWord) {
  CallCanceller canceller;
  FakeServer server;
  std::string errors;
  const ExitCode exit_code = StreamForEver(
      server, canceller, [] { return false; }, &errors);
  EXPECT_EQ(exit_code, ExitCode::kBrokenPipe);
  EXPECT_EQ(errors, "");
  EXPECT_TRUE(server.inference().stream_cancelled.WaitForNotificationWithTimeout(kPatience));
}

}  // namespace
}  // namespace tidal::client
