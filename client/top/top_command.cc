#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/command/commands.h"
#include "client/top/http_get.h"
#include "client/top/server_view.h"

namespace tidal::client {
namespace {

constexpr absl::Duration kMinInterval = absl::Milliseconds(100);
constexpr absl::Duration kMaxScrapeTime = absl::Seconds(10);
constexpr int kPlainWidth = 1000;
constexpr absl::string_view kCursorHome = "\x1b[H";
constexpr absl::string_view kClearToEndOfLine = "\x1b[K\n";
constexpr absl::string_view kClearBelow = "\x1b[J";
constexpr absl::string_view kClearScreen = "\x1b[2J";

struct Scrape {
  absl::Time time;
  std::vector<MetricSample> samples;
};

absl::StatusOr<Scrape> TakeScrape(const std::string& url, absl::Duration timeout) {
  const auto text = HttpGet(url, timeout);
  if (!text.ok()) return text.status();
  auto samples = ParseMetricsText(*text);
  if (!samples.ok()) {
    return absl::UnavailableError(absl::StrCat("GET ", url, ": ", samples.status().message()));
  }
  return Scrape{absl::Now(), *std::move(samples)};
}

// Asked at every frame, so that the view follows a window's size.
int TerminalWidth() {
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

void ShowFrame(const std::string& heading, const ServerView& view, Console& console) {
  if (!console.out_is_terminal) {
    console.out << heading << "\n" << RenderServerView(view, kPlainWidth) << std::flush;
    return;
  }
  const int width = TerminalWidth();
  console.out << kCursorHome << heading.substr(0, static_cast<std::size_t>(width))
              << kClearToEndOfLine << kClearToEndOfLine;
  const std::string text = RenderServerView(view, width);
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = text.find('\n', begin);
    console.out << text.substr(begin, end - begin) << kClearToEndOfLine;
    begin = end + 1;
  }
  console.out << kClearBelow << std::flush;
}

}  // namespace

ExitCode RunTop(absl::Span<const std::string> arguments, CommandContext& context) {
  std::string metrics_target = "localhost:9090";
  absl::Duration interval = absl::Seconds(2);
  bool once = false;
  FlagSet flags;
  flags.Add("metrics_target", &metrics_target, "HOST:PORT",
            "the metrics endpoint, or its whole URL; localhost:9090 by default");
  flags.Add("interval", &interval, "DURATION", "between two frames; 2s by default");
  flags.Add("once", &once, "", "print one frame, over one interval");
  if (const auto done = ParseCommand("tidal-client top [FLAGS]", flags, arguments, context)) {
    return *done;
  }
  if (interval < kMinInterval || interval == absl::InfiniteDuration()) {
    return ReportUsageError(
        absl::InvalidArgumentError(absl::StrCat(
            "flag --interval has the value '", absl::FormatDuration(interval),
            "': it must be finite, and at least ", absl::FormatDuration(kMinInterval))),
        context.console);
  }
  const std::string url = absl::StrContains(metrics_target, "://")
                              ? metrics_target
                              : absl::StrCat("http://", metrics_target, "/metrics");
  const absl::Duration timeout = std::min(context.common.timeout, kMaxScrapeTime);
  absl::StatusOr<Scrape> earlier = TakeScrape(url, timeout);
  if (!earlier.ok()) return context.Fail(earlier.status());
  if (context.console.out_is_terminal) context.console.out << kClearScreen << std::flush;
  do {
    if (context.canceller.WaitForCancel(interval)) return ExitCode::kInterrupted;
    absl::StatusOr<Scrape> now = TakeScrape(url, timeout);
    if (!now.ok()) return context.Fail(now.status());
    const absl::Duration elapsed = now->time - earlier->time;
    ShowFrame(
        absl::StrCat(metrics_target, "  ",
                     absl::FormatTime("%H:%M:%S", now->time, absl::LocalTimeZone()), "  over ",
                     absl::FormatDuration(absl::Trunc(elapsed, absl::Milliseconds(100)))),
        MakeServerView(earlier->samples, now->samples, elapsed), context.console);
    earlier = std::move(now);
  } while (!once && context.console.out.good());
  return context.console.out.good() ? ExitCode::kOk : ExitCode::kBrokenPipe;
}

}  // namespace tidal::client
