// Writes to the log what the server and its engine hold, for people who look for the reason of a
// stall. Request ids and counts, no prompt and no output. Thread-safe.
#pragma once

#include <mutex>

#include "absl/base/thread_annotations.h"
#include "engine/debug_state.h"
#include "engine/engine.h"
#include "server/lifecycle.h"

namespace tidal::server {

class DebugDump {
 public:
  // Sequences that are written; of more the dump says how many there are.
  static constexpr size_t kMaxSequences = 1024;

  // `lifecycle` must outlive the dump.
  explicit DebugDump(const Lifecycle* lifecycle) : lifecycle_(lifecycle) {}
  DebugDump(const DebugDump&) = delete;
  DebugDump& operator=(const DebugDump&) = delete;

  // Names the engine, which must outlive the subject, as long as it lives. One at a time.
  class Subject {
   public:
    Subject(DebugDump* dump, Engine* engine) : dump_(dump) { dump_->SetEngine(engine); }
    ~Subject() { dump_->SetEngine(nullptr); }
    Subject(const Subject&) = delete;
    Subject& operator=(const Subject&) = delete;

   private:
    DebugDump* const dump_;
  };

  // Writes the line `debug state of the server` at once, also where the engine hangs. The engine
  // thread writes its own before its next step: `debug state of the engine`, and `debug state of a
  // sequence` for each.
  void Write();

 private:
  void SetEngine(Engine* engine);

  const Lifecycle* const lifecycle_;
  std::mutex mutex_;
  Engine* engine_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

// The engine's part.
void LogDebugState(const EngineDebugState& state);

}  // namespace tidal::server
