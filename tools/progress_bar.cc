#include "tools/progress_bar.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"

namespace tidal {

ProgressBar::ProgressBar(int64_t total, bool is_terminal, std::ostream* out)
    : total_(std::max<int64_t>(total, 1)), is_terminal_(is_terminal), out_(out) {}

ProgressBar::~ProgressBar() {
  if (is_terminal_) *out_ << "\n";
}

void ProgressBar::Update(int64_t num_done) {
  std::string left;
  if (num_done_at_start_ < 0) {
    num_done_at_start_ = num_done;
    start_ = Clock::now();
  } else if (num_done > num_done_at_start_ && num_done < total_) {
    const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
    const double seconds_left = seconds / static_cast<double>(num_done - num_done_at_start_) *
                                static_cast<double>(total_ - num_done);
    left = absl::StrCat(
        ", ", absl::FormatDuration(absl::Ceil(absl::Seconds(seconds_left), absl::Seconds(1))),
        " left");
  }
  const std::string text = absl::StrCat(num_done, "/", total_, left);
  if (is_terminal_) {
    constexpr size_t kWidth = 30;
    const auto filled = static_cast<size_t>(static_cast<int64_t>(kWidth) * num_done / total_);
    *out_ << "\r[" << std::string(filled, '#') << std::string(kWidth - filled, '.') << "] " << text
          << "\x1b[K" << std::flush;
    return;
  }
  const int64_t tenth = 10 * num_done / total_;
  if (tenth == last_tenth_) return;
  last_tenth_ = tenth;
  *out_ << text << "\n" << std::flush;
}

}  // namespace tidal
