// What a needle measurement found, for people, for programs, and as a picture.
#pragma once

#include <iosfwd>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tools/needle_eval.h"

namespace tidal {

// Methods by token budgets, in per cent found, a table for each task and context; for tasks of many
// words also the share of the words that came out right.
void PrintNeedleTables(const std::vector<NeedleResult>& results, std::ostream* out);

// One object for each task, context, method and budget, with the counts of each depth.
nlohmann::json NeedleSummary(const std::vector<NeedleResult>& results);

// A panel for each task, method and budget: contexts across, depths down, the share found as
// colour and number.
std::string NeedleHeatMapSvg(const std::vector<NeedleResult>& results);

}  // namespace tidal
