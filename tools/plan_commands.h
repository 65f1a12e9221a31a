// The commands of tidal-eval about layer plans.
#pragma once

#include "absl/status/status.h"

namespace tidal {

// Measures recall over the needle prompts of the flags: tables, and with --out JSON and a plot.
absl::Status RunRecall();

// Finds the checkpoint's layer plan and writes it to tidal.json beside it.
absl::Status RunCalibrate();

}  // namespace tidal
