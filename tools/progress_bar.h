// Tells people on a terminal how far a measurement is, and logs every tenth of it elsewhere. On
// standard error, so that results can be piped. Not thread-safe.
#pragma once

#include <chrono>
#include <cstdint>
#include <ostream>

namespace tidal {

class ProgressBar {
 public:
  ProgressBar(int64_t total, bool is_terminal, std::ostream* out);
  // Ends the bar's line.
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // What was done when the first call came (found in a file) says nothing of the time that is left.
  void Update(int64_t num_done);

 private:
  using Clock = std::chrono::steady_clock;

  int64_t total_;
  bool is_terminal_;
  std::ostream* out_;
  Clock::time_point start_ = Clock::now();
  int64_t num_done_at_start_ = -1;
  int64_t last_tenth_ = -1;
};

}  // namespace tidal
