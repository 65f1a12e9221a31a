#include "tools/needle_report.h"

#include <algorithm>
#include <map>
#include <ostream>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tools/svg.h"

namespace tidal {
namespace {

struct Count {
  int num_found = 0;
  int num_cases = 0;
  double sum_of_word_shares = 0;

  void Add(const NeedleResult& result) {
    num_found += result.found() ? 1 : 0;
    ++num_cases;
    sum_of_word_shares += static_cast<double>(result.num_correct_words) / result.num_words;
  }
  double found_share() const { return static_cast<double>(num_found) / num_cases; }
  double word_share() const { return sum_of_word_shares / num_cases; }
};

// The distinct values in the order of their first occurrence.
template <typename Value>
void AddOnce(const Value& value, std::vector<Value>* values) {
  if (std::find(values->begin(), values->end(), value) == values->end()) values->push_back(value);
}

std::string TaskLabel(const NeedleResult& result) {
  if (result.task == "several") return absl::StrCat(result.task_size, " needles at once");
  if (result.task == "verse") return absl::StrCat("verse of ", result.task_size, " words");
  return result.task == "chain" ? "needle through another" : "single needle";
}

std::string MethodLabel(const std::string& method, int32_t token_budget) {
  return token_budget == 0 ? method : absl::StrCat(method, ", K=", token_budget);
}

using TableKey = std::pair<std::string, int32_t>;  // task label, context
using CellKey = std::pair<std::string, int32_t>;   // method, budget

struct Table {
  std::map<CellKey, Count> cells;
  std::vector<std::string> methods;
  std::vector<int32_t> budgets;
  int32_t num_words = 0;
};

void PrintTable(const Table& table, const std::string& what, bool words, std::ostream* out) {
  *out << what << "\n";
  size_t width = 6;
  for (const std::string& method : table.methods) width = std::max(width, method.size());
  *out << absl::StreamFormat("%-*s", static_cast<int>(width), "method");
  for (const int32_t budget : table.budgets) {
    *out << absl::StreamFormat("%9s", absl::StrCat("K=", budget));
  }
  *out << "\n";
  for (const std::string& method : table.methods) {
    *out << absl::StreamFormat("%-*s", static_cast<int>(width), method);
    const auto unbudgeted = table.cells.find({method, 0});
    for (const int32_t budget : table.budgets) {
      auto cell = table.cells.find({method, budget});
      // What has no budget is the same in each column.
      if (cell == table.cells.end()) cell = unbudgeted;
      if (cell == table.cells.end()) {
        *out << absl::StreamFormat("%9s", "-");
      } else {
        const double share = words ? cell->second.word_share() : cell->second.found_share();
        *out << absl::StreamFormat("%9.1f", 100.0 * share);
      }
    }
    *out << "\n";
  }
  *out << "\n";
}

}  // namespace

void PrintNeedleTables(const std::vector<NeedleResult>& results, std::ostream* out) {
  std::vector<TableKey> order;
  std::map<TableKey, Table> tables;
  for (const NeedleResult& result : results) {
    const TableKey key = {TaskLabel(result), result.num_context_tokens};
    AddOnce(key, &order);
    Table& table = tables[key];
    AddOnce(result.method, &table.methods);
    if (result.token_budget > 0) AddOnce(result.token_budget, &table.budgets);
    table.num_words = std::max(table.num_words, result.num_words);
    table.cells[{result.method, result.token_budget}].Add(result);
  }
  for (const TableKey& key : order) {
    Table& table = tables[key];
    std::sort(table.budgets.begin(), table.budgets.end());
    if (table.budgets.empty()) table.budgets.push_back(0);
    const int num_cases = table.cells.begin()->second.num_cases;
    PrintTable(table,
               absl::StrFormat("%s, %d tokens, %d prompts: per cent found", key.first, key.second,
                               num_cases),
               /*words=*/false, out);
    constexpr int32_t kManyWords = 6;  // more than a passphrase
    if (table.num_words < kManyWords) continue;
    PrintTable(table,
               absl::StrFormat("%s, %d tokens: per cent of the words before the first wrong one",
                               key.first, key.second),
               /*words=*/true, out);
  }
}

nlohmann::json NeedleSummary(const std::vector<NeedleResult>& results) {
  using Key = std::tuple<std::string, int32_t, int32_t, std::string, int32_t>;
  std::vector<Key> order;
  std::map<Key, Count> totals;
  std::map<Key, std::map<double, Count>> by_depth;
  for (const NeedleResult& result : results) {
    const Key key = {result.task, result.task_size, result.num_context_tokens, result.method,
                     result.token_budget};
    AddOnce(key, &order);
    totals[key].Add(result);
    by_depth[key][result.depth].Add(result);
  }
  nlohmann::json summary = nlohmann::json::array();
  for (const Key& key : order) {
    const auto& [task, size, context, method, budget] = key;
    nlohmann::json depths = nlohmann::json::array();
    for (const auto& [depth, count] : by_depth[key]) {
      depths.push_back({{"depth", depth}, {"found", count.num_found}, {"cases", count.num_cases}});
    }
    const Count& total = totals[key];
    summary.push_back({{"task", task},
                       {"size", size},
                       {"context", context},
                       {"method", method},
                       {"token_budget", budget},
                       {"found", total.num_found},
                       {"cases", total.num_cases},
                       {"word_share", total.word_share()},
                       {"depths", std::move(depths)}});
  }
  return summary;
}

std::string NeedleHeatMapSvg(const std::vector<NeedleResult>& results) {
  using PanelKey = std::pair<std::string, std::string>;  // task label, method and budget
  std::vector<PanelKey> panels;
  std::vector<int32_t> contexts;
  std::vector<double> depths;
  std::map<std::tuple<PanelKey, int32_t, double>, Count> cells;
  for (const NeedleResult& result : results) {
    const PanelKey panel = {TaskLabel(result), MethodLabel(result.method, result.token_budget)};
    AddOnce(panel, &panels);
    AddOnce(result.num_context_tokens, &contexts);
    AddOnce(result.depth, &depths);
    cells[{panel, result.num_context_tokens, result.depth}].Add(result);
  }
  std::sort(contexts.begin(), contexts.end());
  std::sort(depths.begin(), depths.end());
  constexpr double kCellWidth = 52;
  constexpr double kCellHeight = 22;
  constexpr double kLeft = 60;   // of a panel: the depths' labels
  constexpr double kTop = 44;    // its titles
  constexpr double kBelow = 34;  // the contexts' labels
  constexpr size_t kPanelsInRow = 4;
  const double width =
      kLeft + 30 + kCellWidth * static_cast<double>(std::max<size_t>(contexts.size(), 3));
  const double height = kTop + kCellHeight * static_cast<double>(depths.size()) + kBelow;
  SvgDrawing drawing;
  for (size_t i = 0; i < panels.size(); ++i) {
    const double x = width * static_cast<double>(i % kPanelsInRow) + kLeft;
    const size_t panel_row = i / kPanelsInRow;
    const double y = height * static_cast<double>(panel_row) + kTop;
    drawing.Text(x, y - 24, panels[i].second, 13);
    drawing.Text(x, y - 9, absl::StrCat(panels[i].first, ", % found"), 11);
    for (size_t row = 0; row < depths.size(); ++row) {
      const double top = y + kCellHeight * static_cast<double>(row);
      drawing.Text(x - 6, top + 15, absl::StrFormat("%.0f%%", 100 * depths[row]), 11,
                   SvgDrawing::Anchor::kEnd);
      for (size_t column = 0; column < contexts.size(); ++column) {
        const auto cell = cells.find({panels[i], contexts[column], depths[row]});
        if (cell == cells.end()) continue;
        const double left = x + kCellWidth * static_cast<double>(column);
        const double share = cell->second.found_share();
        drawing.Rectangle(left, top, kCellWidth - 1, kCellHeight - 1, ShareColor(share));
        drawing.Text(left + kCellWidth / 2, top + 15, absl::StrFormat("%.0f", 100 * share), 11,
                     SvgDrawing::Anchor::kMiddle);
      }
    }
    const double bottom = y + kCellHeight * static_cast<double>(depths.size());
    for (size_t column = 0; column < contexts.size(); ++column) {
      drawing.Text(x + kCellWidth * (static_cast<double>(column) + 0.5), bottom + 14,
                   absl::StrCat(contexts[column]), 11, SvgDrawing::Anchor::kMiddle);
    }
  }
  const size_t num_rows = (panels.size() + kPanelsInRow - 1) / kPanelsInRow;
  return drawing.Finish(width * static_cast<double>(std::min(panels.size(), kPanelsInRow)),
                        height * static_cast<double>(num_rows));
}

}  // namespace tidal
