// How `tidal-client generate` shows a generation: as text with a summary, or as JSON lines.
// Not thread-safe.
#pragma once

#include <memory>

#include "client/command/console.h"
#include "tidal/inference/v1/inference.pb.h"

namespace tidal::client {

class GenerateOutput {
 public:
  virtual ~GenerateOutput() = default;

  // An event of a stream. Returns false once nobody reads standard output any more.
  virtual bool OnEvent(const inference::v1::GenerateStreamResponse& event) = 0;
  // The whole result of a call that does not stream. Returns as OnEvent.
  virtual bool OnResponse(const inference::v1::GenerateResponse& response) = 0;
  // The call failed: ends what OnEvent left unfinished on the screen.
  virtual void OnFailure() = 0;
};

// Text of the first choice on standard output, flushed at each delta and followed by a newline on a
// terminal; on standard error the progress of the prefill, where it is a terminal, and a summary.
// `console` must outlive the result, here and below.
std::unique_ptr<GenerateOutput> MakeTextOutput(Console& console);

// Each event, or the response, as one JSON object on a line of standard output.
std::unique_ptr<GenerateOutput> MakeJsonOutput(Console& console);

}  // namespace tidal::client
