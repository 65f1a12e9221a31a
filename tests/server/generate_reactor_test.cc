// The reactors without gRPC: a thread of the test's own stands for gRPC's and keeps its contract
// (one write at a time, OnWriteDone for each, OnCancel before OnDone, OnDone last, after Finish),
// while the engine's thread generates.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "server/generate_stream_reactor.h"
#include "server/generate_unary_reactor.h"
#include "tests/server/test_server.h"

#if defined(__SANITIZE_THREAD__)
// What a reactor does before gRPC has bound it waits under a mutex of Abseil, which as systems ship
// it is not built for ThreadSanitizer.
extern "C" const char* __tsan_default_suppressions();
const char* __tsan_default_suppressions() {
  return "race:InternalBindWriter\nrace:InternalBindCall\nrace:Status::Unref\n";
}
#endif

namespace tidal::server {
namespace {

using inference::v1::GenerateRequest;
using inference::v1::GenerateResponse;
using inference::v1::GenerateStreamRequest;
using inference::v1::GenerateStreamResponse;
using testing::HasSubstr;

// One call, as gRPC would carry it out for a client.
class FakeStream : public grpc::ServerCallbackWriter<GenerateStreamResponse> {
 public:
  // Calls the reactor from here on, until it is done.
  void Run(GenerateStreamReactor* reactor) {
    BindReactor(reactor);
    thread_ = std::thread([this, reactor] { Serve(reactor); });
  }

  // The client goes: no write succeeds any more.
  void Cancel() {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_cancelled_ = true;
    changed_.notify_all();
  }
  // Writes are not done, as though the client's window were full, until Resume.
  void Stall() {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_stalled_ = true;
  }
  void Resume() {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_stalled_ = false;
    changed_.notify_all();
  }
  void WaitForWrites(size_t count) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this, count] { return events_.size() >= count; });
  }

  // After its end: what the client has got.
  void WaitForEnd() { thread_.join(); }
  const grpc::Status& status() const { return *status_; }
  const std::vector<GenerateStreamResponse>& events() const { return events_; }
  std::string text() const {
    std::string text;
    for (const GenerateStreamResponse& event : events_) text += event.delta().text();
    return text;
  }
  bool has_finished_event() const { return !events_.empty() && events_.back().has_finished(); }

  // From the reactor, on any thread.
  void Write(const GenerateStreamResponse* event, grpc::WriteOptions /*options*/) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    EXPECT_FALSE(is_writing_ || status_.has_value()) << "one write at a time, none after Finish";
    is_writing_ = true;
    if (!is_cancelled_) events_.push_back(*event);
    changed_.notify_all();
  }
  void WriteAndFinish(const GenerateStreamResponse* event, grpc::WriteOptions /*options*/,
                      grpc::Status status) override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!is_cancelled_) events_.push_back(*event);
    }
    Finish(std::move(status));
  }
  void Finish(grpc::Status status) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    EXPECT_FALSE(is_writing_ || status_.has_value()) << "Finish once, when nothing is written";
    status_ = std::move(status);
    changed_.notify_all();
  }
  void SendInitialMetadata() override { ADD_FAILURE() << "the reactors do not ask for it"; }

 private:
  grpc::internal::ServerReactor* reactor() override { return nullptr; }
  void CallOnDone() override {}

  void Serve(GenerateStreamReactor* reactor) {
    bool has_told_cancel = false;
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] {
        return (is_cancelled_ && !has_told_cancel) ||
               (is_writing_ && (!is_stalled_ || is_cancelled_)) || status_.has_value();
      });
      if (is_cancelled_ && !has_told_cancel) {
        has_told_cancel = true;
        lock.unlock();
        reactor->OnCancel();
      } else if (is_writing_) {
        is_writing_ = false;
        const bool ok = !is_cancelled_;
        lock.unlock();
        reactor->OnWriteDone(ok);
      } else {
        lock.unlock();
        return reactor->OnDone();
      }
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_cancelled_ = false;
  bool is_stalled_ = false;
  bool is_writing_ = false;
  std::vector<GenerateStreamResponse> events_;
  std::optional<grpc::Status> status_;
  std::thread thread_;
};

class FakeUnaryCall : public grpc::ServerCallbackUnary {
 public:
  void Run(GenerateUnaryReactor* reactor) {
    BindReactor(reactor);
    thread_ = std::thread([this, reactor] {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [this] { return is_cancelled_ || status_.has_value(); });
        if (!status_.has_value()) {
          lock.unlock();
          reactor->OnCancel();
          lock.lock();
          changed_.wait(lock, [this] { return status_.has_value(); });
        }
      }
      reactor->OnDone();
    });
  }
  void Cancel() {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_cancelled_ = true;
    changed_.notify_all();
  }
  void WaitForEnd() { thread_.join(); }
  const grpc::Status& status() const { return *status_; }

  void Finish(grpc::Status status) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    EXPECT_FALSE(status_.has_value()) << "Finish once";
    status_ = std::move(status);
    changed_.notify_all();
  }
  void SendInitialMetadata() override { ADD_FAILURE() << "the reactors do not ask for it"; }

 private:
  grpc::internal::ServerReactor* reactor() override { return nullptr; }
  void CallOnDone() override {}

  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_cancelled_ = false;
  std::optional<grpc::Status> status_;
  std::thread thread_;
};

class GenerateReactorTest : public testing::Test {
 protected:
  void StartServer(TestServerOptions options = {}) {
    options.listens = false;
    server_ = std::make_unique<TestServer>(std::move(options));
  }

  static CallInfo Info() { return {.method = "Generate", .peer = "test", .deadline = {}}; }
  static CallInfo InfoWithoutDeadline() {
    CallInfo info = Info();
    info.deadline = std::chrono::system_clock::time_point::max();
    return info;
  }

  static GenerateStreamRequest StreamRequestFor(const std::string& text, int max_new_tokens) {
    GenerateStreamRequest request;
    request.set_text(text);
    request.mutable_stopping()->set_max_new_tokens(max_new_tokens);
    return request;
  }

  void Start(FakeStream* stream, const GenerateStreamRequest& request) {
    stream->Run(GenerateStreamReactor::Start(InfoWithoutDeadline(), server_->generate_options(),
                                             server_->lifecycle().Admit(), request));
  }

  void ExpectNothingLeft() {
    EXPECT_TRUE(server_->lifecycle().WaitForCalls(absl::Seconds(60)));
    EXPECT_TRUE(server_->engine().WaitUntilIdle(absl::Seconds(60)));
    EXPECT_EQ(server_->engine().load().num_used_blocks, 0);
  }

  std::unique_ptr<TestServer> server_;
};

TEST_F(GenerateReactorTest, MergesWhatIsGeneratedWhileAWriteIsInFlight) {
  StartServer();
  FakeStream stream;
  stream.Stall();
  Start(&stream, StreamRequestFor("hello", 200));
  ASSERT_TRUE(server_->engine().WaitUntilIdle(absl::Seconds(60)));
  stream.Resume();
  stream.WaitForEnd();
  EXPECT_TRUE(stream.status().ok());
  // Started was in flight all the time; the rest is one event of each kind.
  ASSERT_EQ(stream.events().size(), 4u);
  EXPECT_TRUE(stream.events()[0].has_started());
  EXPECT_EQ(stream.events()[1].progress().prefilled_tokens(), 5);
  EXPECT_EQ(stream.events()[2].delta().token_ids_size(), 200);
  EXPECT_TRUE(stream.events()[3].has_finished());
  EXPECT_EQ(stream.text(), TestServer::ExpectedText("hello", 200));
  ExpectNothingLeft();
}

TEST_F(GenerateReactorTest, CancelsAReaderBehindByMoreThanTheLimit) {
  TestServerOptions options;
  options.generate.max_pending_response_bytes = 100;
  StartServer(options);
  FakeStream stream;
  stream.Stall();
  Start(&stream, StreamRequestFor("hello", 2000));
  ASSERT_TRUE(server_->engine().WaitUntilIdle(absl::Seconds(60)));
  stream.Resume();
  stream.WaitForEnd();
  EXPECT_EQ(stream.status().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(stream.status().error_message(), HasSubstr("more than 100 bytes"));
  EXPECT_FALSE(stream.has_finished_event());
  ExpectNothingLeft();
}

class StalledStreamTest : public GenerateReactorTest {
 protected:
  void StartStalledStream(int num_tokens) {
    TestServerOptions options;
    options.generate.stream_watch = &watch_;
    StartServer(options);
    stream_.Stall();
    CallInfo info = InfoWithoutDeadline();
    info.abort = [this] { stream_.Cancel(); };
    stream_.Run(GenerateStreamReactor::Start(std::move(info), server_->generate_options(),
                                             server_->lifecycle().Admit(),
                                             StreamRequestFor("hello", num_tokens)));
  }

  void ExpectGivenUp() {
    stream_.WaitForEnd();
    EXPECT_EQ(stream_.status().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_EQ(stream_.status().error_message(),
              "the stream is not read: nothing was taken for 50ms");
    EXPECT_FALSE(stream_.has_finished_event());
    ExpectNothingLeft();
  }

  StreamWatch watch_{absl::Milliseconds(50)};
  FakeStream stream_;
};

TEST_F(StalledStreamTest, IsGivenUpWhileItIsGenerated) {
  StartStalledStream(4000);
  ExpectGivenUp();
}

TEST_F(StalledStreamTest, IsGivenUpAfterTheEngineHasFinished) {
  StartStalledStream(1);
  ASSERT_TRUE(server_->engine().WaitUntilIdle(absl::Seconds(60)));
  ExpectGivenUp();
}

TEST_F(GenerateReactorTest, NeverSaysOkToAReaderThatMissedItsOutput) {
  // The limit is exceeded by the very last tokens, so that the engine finishes before the cancel
  // reaches it.
  TestServerOptions options;
  options.generate.max_pending_response_bytes = 20;
  StartServer(options);
  FakeStream stream;
  stream.Stall();
  Start(&stream, StreamRequestFor("hello", 5));
  ASSERT_TRUE(server_->engine().WaitUntilIdle(absl::Seconds(60)));
  stream.Resume();
  stream.WaitForEnd();
  EXPECT_EQ(stream.status().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_FALSE(stream.has_finished_event());
  ExpectNothingLeft();
}

TEST_F(GenerateReactorTest, AFailedWriteEndsTheGeneration) {
  StartServer();
  FakeStream stream;
  stream.Stall();
  Start(&stream, StreamRequestFor("hello", 4000));
  stream.WaitForWrites(1);
  stream.Cancel();
  stream.WaitForEnd();
  EXPECT_EQ(stream.status().error_code(), grpc::StatusCode::CANCELLED);
  ExpectNothingLeft();
}

TEST_F(GenerateReactorTest, AnInvalidRequestFinishesBeforeItIsBound) {
  StartServer();
  FakeStream stream;
  Start(&stream, StreamRequestFor("hello", -1));
  stream.WaitForEnd();
  EXPECT_EQ(stream.status().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_TRUE(stream.events().empty());
  ExpectNothingLeft();
}

TEST_F(GenerateReactorTest, ACallWhoseDeadlineHasPassedIsCalledThat) {
  StartServer();
  FakeStream stream;
  stream.Run(GenerateStreamReactor::Start(Info(), server_->generate_options(),
                                          server_->lifecycle().Admit(),
                                          StreamRequestFor("hello", 4000)));
  stream.Cancel();
  stream.WaitForEnd();
  EXPECT_EQ(stream.status().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  ExpectNothingLeft();
}

TEST_F(GenerateReactorTest, ManyStreamsWithCancelsAndStallsAtAnyMoment) {
  TestServerOptions options;
  options.engine.num_blocks = 128;
  options.engine.max_model_len = 512;
  StartServer(options);
  std::vector<std::thread> clients;
  for (int client = 0; client < 4; ++client) {
    clients.emplace_back([this, client] {
      std::mt19937 random(static_cast<unsigned>(client));
      for (int i = 0; i < 15; ++i) {
        const std::string prompt(1 + random() % 200, static_cast<char>('A' + client));
        const int num_tokens = 1 + static_cast<int>(random() % 100);
        const bool cancels = random() % 2 == 0;
        FakeStream stream;
        if (random() % 2 == 0) stream.Stall();
        Start(&stream, StreamRequestFor(prompt, num_tokens));
        if (cancels) {
          if (random() % 2 == 0) stream.WaitForWrites(1);
          stream.Cancel();
        }
        stream.Resume();
        stream.WaitForEnd();
        if (!cancels) {
          EXPECT_TRUE(stream.status().ok()) << stream.status().error_message();
        }
        if (stream.has_finished_event()) {
          EXPECT_EQ(stream.text(), TestServer::ExpectedText(prompt, num_tokens));
        } else {
          EXPECT_TRUE(cancels);
        }
      }
    });
  }
  for (std::thread& client : clients) client.join();
  ExpectNothingLeft();
}

TEST_F(GenerateReactorTest, UnaryCallsWithCancelsAtAnyMoment) {
  StartServer();
  std::vector<std::thread> clients;
  for (int client = 0; client < 4; ++client) {
    clients.emplace_back([this, client] {
      std::mt19937 random(static_cast<unsigned>(client));
      for (int i = 0; i < 15; ++i) {
        GenerateRequest request;
        request.set_text(std::string(1 + random() % 200, static_cast<char>('A' + client)));
        request.mutable_stopping()->set_max_new_tokens(50);
        const bool cancels = random() % 2 == 0;
        GenerateResponse response;
        FakeUnaryCall call;
        call.Run(GenerateUnaryReactor::Start(InfoWithoutDeadline(), server_->generate_options(),
                                             server_->lifecycle().Admit(), request, &response));
        if (cancels) call.Cancel();
        call.WaitForEnd();
        if (call.status().ok()) {
          EXPECT_EQ(response.choices(0).text(), TestServer::ExpectedText(request.text(), 50));
        } else {
          EXPECT_TRUE(cancels);
          EXPECT_EQ(call.status().error_code(), grpc::StatusCode::CANCELLED);
        }
      }
    });
  }
  for (std::thread& client : clients) client.join();
  ExpectNothingLeft();
}

}  // namespace
}  // namespace tidal::server
