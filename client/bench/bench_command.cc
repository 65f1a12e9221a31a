#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/bench/bench_flags.h"
#include "client/bench/prompt_maker.h"
#include "client/bench/report_output.h"
#include "client/command/commands.h"
#include "client/command/event_json.h"
#include "client/command/names.h"

namespace tidal::client {
namespace {

namespace v1 = inference::v1;

constexpr absl::Duration kBarInterval = absl::Milliseconds(200);
constexpr absl::Duration kLineInterval = absl::Seconds(10);
constexpr int kBarWidth = 24;

// Opens a file for the end of the run, before the run. Nothing where the path is empty.
absl::Status OpenOutput(const std::string& path, std::ofstream* file) {
  if (path.empty()) return absl::OkStatus();
  file->open(path, std::ios::binary);
  if (*file) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("cannot write ", path, ": ", strerror(errno)));
}

// A bar that is drawn over itself where standard error is a terminal, else a line now and then.
class ProgressDisplay {
 public:
  explicit ProgressDisplay(Console& console) : console_(console) {}

  absl::Duration interval() const {
    return console_.err_is_terminal ? kBarInterval : kLineInterval;
  }

  void Show(const LoadProgress& progress) {
    const int64_t num_ended = progress.num_sent - progress.num_running;
    std::string text;
    if (console_.err_is_terminal) {
      const auto filled = static_cast<std::size_t>(kBarWidth * num_ended /
                                                   std::max<int64_t>(progress.num_planned, 1));
      text =
          absl::StrCat("\r[", std::string(filled, '#'), std::string(kBarWidth - filled, '.'), "] ");
    }
    absl::StrAppendFormat(&text, "%d of %d ended, %d running, %d failed, %d tokens, %.0f s",
                          num_ended, progress.num_planned, progress.num_running,
                          progress.num_failed, progress.num_tokens,
                          absl::ToDoubleSeconds(progress.elapsed));
    console_.err << text << (console_.err_is_terminal ? "\x1b[K" : "\n") << std::flush;
  }

  void Clear() {
    if (console_.err_is_terminal) console_.err << "\r\x1b[K" << std::flush;
  }

 private:
  Console& console_;
};

// One run of the command, once its flags are read and its server is known.
class Bench {
 public:
  Bench(const BenchFlags& flags, CommandContext& context, PromptMaker prompts)
      : flags_(flags), context_(context), prompts_(std::move(prompts)), display_(context.console) {
    for (int32_t i = 0; i < flags.num_connections; ++i) {
      clients_.push_back(context.MakeClient(/*has_own_connection=*/flags.num_connections > 1));
    }
  }

  // Runs the points one after another, until one is interrupted.
  std::vector<LoadReport> Run(const std::vector<LoadPoint>& points) {
    LoadRunner runner(
        [this](std::size_t index, const PlannedRequest& request, StreamCall::EventCallback on_event,
               StreamCall::DoneCallback on_done) {
          return StartCall(index, request, std::move(on_event), std::move(on_done));
        },
        [this](const LoadProgress& progress) { display_.Show(progress); }, display_.interval());
    context_.canceller.SetCallInFlight([&runner] { runner.Interrupt(); });
    std::vector<LoadReport> reports;
    for (const LoadPoint& point : points) {
      LoadReport report = MakeLoadReport(runner.Run(point), flags_.objective);
      display_.Clear();
      num_earlier_ += point.requests.size();
      report.offered_rate = point.offered_rate;
      report.concurrency = point.concurrency;
      report.is_interrupted = runner.interrupted();
      if (!context_.common.json) context_.console.out << ReportText(report) << std::flush;
      reports.push_back(std::move(report));
      if (runner.interrupted() || !context_.console.out.good()) break;
    }
    context_.canceller.SetCallInFlight(nullptr);
    return reports;
  }

 private:
  std::shared_ptr<StreamCall> StartCall(std::size_t index, const PlannedRequest& planned,
                                        StreamCall::EventCallback on_event,
                                        StreamCall::DoneCallback on_done) {
    v1::GenerateStreamRequest request;
    FillOptions(flags_.request, &request);
    prompts_.Fill(num_earlier_ + index, planned.num_prompt_tokens, request.mutable_token_ids());
    request.mutable_stopping()->set_max_new_tokens(planned.num_output_tokens);
    request.mutable_stopping()->set_ignore_eos(flags_.ignore_eos);
    return clients_[index % clients_.size()].StartGenerateStream(
        std::move(request), absl::Now() + context_.common.timeout, std::move(on_event),
        std::move(on_done));
  }

  const BenchFlags& flags_;
  CommandContext& context_;
  const PromptMaker prompts_;
  ProgressDisplay display_;
  std::vector<InferenceClient> clients_;
  uint64_t num_earlier_ = 0;  // requests of the points before this one
};

ExitCode ExitCodeOfRun(const std::vector<LoadReport>& reports, CommandContext& context) {
  if (!context.console.out.good()) return ExitCode::kBrokenPipe;
  int64_t num_succeeded = 0;
  for (const LoadReport& report : reports) {
    if (report.is_interrupted) {
      context.console.err << "tidal-client: interrupted\n";
      return ExitCode::kInterrupted;
    }
    num_succeeded += report.num_succeeded;
  }
  if (num_succeeded > 0) return ExitCode::kOk;
  context.console.err << "tidal-client: no request succeeded\n";
  return ExitCode::kOther;
}

}  // namespace

ExitCode RunBench(absl::Span<const std::string> arguments, CommandContext& context) {
  BenchFlags values;
  FlagSet flags;
  AddBenchFlags(flags, &values);
  if (const auto done = ParseCommand("tidal-client bench [FLAGS]", flags, arguments, context)) {
    return *done;
  }
  const auto points = MakeLoadPoints(values);
  if (!points.ok()) return ReportUsageError(points.status(), context.console);
  std::ofstream json_file;
  std::ofstream svg_file;
  for (const absl::Status& status :
       {OpenOutput(values.json_path, &json_file), OpenOutput(values.svg_path, &svg_file)}) {
    if (!status.ok()) return ReportUsageError(status, context.console);
  }
  const auto info = context.MakeClient().GetModelInfo(context.MakeCallOptions());
  if (!info.ok()) return context.Fail(info.status());
  auto prompts = PromptMaker::Create(*info, values.num_shared_prefix_tokens, values.load_seed);
  if (!prompts.ok()) return context.Fail(prompts.status());

  const BenchSetup setup{
      context.common.target,
      info->model_name(),
      info->device(),
      LoadName(values),
      AttentionModeName(values.request.attention.value_or(info->default_attention().mode())),
      values.load_seed};
  const std::vector<LoadReport> reports = Bench(values, context, *std::move(prompts)).Run(*points);
  const auto json = ReportsJson(setup, reports);
  if (context.common.json) WriteJsonLine(json, context.console.out);
  if (json_file.is_open()) json_file << json.dump(2) << "\n" << std::flush;
  if (svg_file.is_open()) svg_file << ReportsSvg(setup, reports) << std::flush;
  for (const auto& [path, file] :
       {std::pair(&values.json_path, &json_file), std::pair(&values.svg_path, &svg_file)}) {
    if (file->good()) continue;
    context.console.err << "tidal-client: cannot write " << *path << "\n";
    return ExitCode::kOther;
  }
  return ExitCodeOfRun(reports, context);
}

}  // namespace tidal::client
