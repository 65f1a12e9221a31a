#include "tools/recall_eval.h"

#include <algorithm>
#include <numeric>
#include <ostream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/backend/status_macros.h"
#include "tools/eval_sequence.h"
#include "tools/svg.h"

namespace tidal {
namespace {

using Matrix = std::vector<std::vector<double>>;
using Sets = std::vector<std::vector<int32_t>>;  // [sets][token_budget], ascending

double ShareInCommon(const std::vector<int32_t>& selected, const std::vector<int32_t>& wanted) {
  std::vector<int32_t> common;
  std::set_intersection(selected.begin(), selected.end(), wanted.begin(), wanted.end(),
                        std::back_inserter(common));
  return static_cast<double>(common.size()) / static_cast<double>(wanted.size());
}

class RecallRun {
 public:
  RecallRun(ServingModel* model, const Selection& selection)
      : model_(model),
        selection_(selection),
        sequence_(model),
        sets_(static_cast<size_t>(num_layers())),
        probabilities_(sets_.size()) {
    result_.token_budget = selection.token_budget;
    result_.positions.assign(sets_.size(), std::vector<double>(sets_.size(), 0.0));
    result_.mass = result_.positions;
  }

  absl::Status RunPrompt(const RecallPrompt& prompt);
  RecallResult Finish();

 private:
  int32_t num_layers() const { return model_->config.shape.num_layers; }
  absl::Status RunToken(int32_t token_id, int32_t position);
  void AddToken();
  double CoveredMass(const Sets& sets, size_t attending_layer) const;

  ServingModel* model_;
  Selection selection_;
  EvalSequence sequence_;
  // Of the present token, by layer.
  std::vector<Sets> sets_;
  std::vector<std::vector<std::vector<float>>> probabilities_;  // [layer][head][position]
  RecallResult result_;
};

absl::Status RecallRun::RunPrompt(const RecallPrompt& prompt) {
  const std::vector<int32_t>& prompt_ids = prompt.prompt_token_ids;
  if (static_cast<int64_t>(prompt_ids.size()) <= selection_.token_budget) {
    return absl::InvalidArgumentError(
        absl::StrCat("a prompt of ", prompt_ids.size(), " tokens is not longer than the budget of ",
                     selection_.token_budget, ": nothing is selected"));
  }
  TIDAL_RETURN_IF_ERROR(
      sequence_.Prefill(absl::MakeConstSpan(prompt_ids).first(prompt_ids.size() - 1)));
  auto position = static_cast<int32_t>(prompt_ids.size()) - 1;
  TIDAL_RETURN_IF_ERROR(RunToken(prompt_ids.back(), position));
  // What the answer's last token attends decides nothing any more.
  for (size_t i = 0; i + 1 < prompt.answer_token_ids.size(); ++i) {
    TIDAL_RETURN_IF_ERROR(RunToken(prompt.answer_token_ids[i], ++position));
  }
  return absl::OkStatus();
}

absl::Status RecallRun::RunToken(int32_t token_id, int32_t position) {
  std::vector<float> logits;
  // A layer at a time selects: a backend tells the last selection of a step only.
  for (int32_t selecting = 0; selecting < num_layers(); ++selecting) {
    std::vector<int32_t> full(static_cast<size_t>(num_layers()));
    std::iota(full.begin(), full.end(), 0);
    full.erase(full.begin() + selecting);
    TIDAL_ASSIGN_OR_RETURN(
        const LayerPlan plan,
        LayerPlan::Create(num_layers(), {.full_layers = full, .selection_layers = {{selecting}}}));
    const auto read_probabilities = [&](int32_t layer) {
      const absl::Status status = model_->backend->ReadAttentionProbabilities(
          layer, 0, &probabilities_[static_cast<size_t>(layer)]);
      result_.has_mass = status.ok();
      return absl::IsUnimplemented(status) ? absl::OkStatus() : status;
    };
    TIDAL_RETURN_IF_ERROR(sequence_.Decode(
        token_id, position, plan, AttentionMode::kTidal, selection_, &logits,
        selecting == 0 ? EvalSequence::LayerObserver(read_probabilities) : nullptr));
    TIDAL_RETURN_IF_ERROR(
        model_->backend->ReadSelection(0, &sets_[static_cast<size_t>(selecting)]));
  }
  AddToken();
  return absl::OkStatus();
}

double RecallRun::CoveredMass(const Sets& sets, size_t attending_layer) const {
  const auto& heads = probabilities_[attending_layer];
  double sum = 0;
  for (size_t head = 0; head < heads.size(); ++head) {
    for (const int32_t position : sets[head * sets.size() / heads.size()]) {
      sum += heads[head][static_cast<size_t>(position)];
    }
  }
  return sum / static_cast<double>(heads.size());
}

void RecallRun::AddToken() {
  ++result_.num_decoded_tokens;
  for (size_t i = 0; i < sets_.size(); ++i) {
    for (size_t j = i; j < sets_.size(); ++j) {
      double share = 0;
      for (size_t set = 0; set < sets_[i].size(); ++set) {
        share += ShareInCommon(sets_[i][set], sets_[j][set]);
      }
      result_.positions[i][j] += share / static_cast<double>(sets_[i].size());
      if (result_.has_mass) result_.mass[i][j] += CoveredMass(sets_[i], j);
    }
  }
}

RecallResult RecallRun::Finish() {
  for (Matrix* matrix : {&result_.positions, &result_.mass}) {
    for (std::vector<double>& row : *matrix) {
      for (double& value : row) value /= static_cast<double>(result_.num_decoded_tokens);
    }
  }
  if (!result_.has_mass) result_.mass.clear();
  return std::move(result_);
}

void PrintMatrix(const Matrix& matrix, const std::string& title, std::ostream* out) {
  *out << title << "\n  selects";
  for (size_t layer = 0; layer < matrix.size(); ++layer) *out << absl::StreamFormat("%7d", layer);
  *out << "\n";
  for (size_t i = 0; i < matrix.size(); ++i) {
    *out << absl::StreamFormat("%9d", i);
    for (size_t j = 0; j < matrix.size(); ++j) {
      *out << (j < i ? std::string(7, ' ') : absl::StrFormat("%7.1f", 100.0 * matrix[i][j]));
    }
    *out << "\n";
  }
  *out << "\n";
}

// One plot with its upper left corner at (left, top).
void DrawPlot(const Matrix& matrix, const std::string& title, double left, double top,
              SvgDrawing* drawing) {
  constexpr double kWidth = 420;
  constexpr double kHeight = 240;
  const double step = kWidth / static_cast<double>(std::max<size_t>(matrix.size() - 1, 1));
  drawing->Text(left, top - 12, title, 13);
  for (int percent = 0; percent <= 100; percent += 25) {
    const double y = top + kHeight * (1 - percent / 100.0);
    drawing->Line(left, y, left + kWidth, y, "#ddd");
    drawing->Text(left - 6, y + 4, absl::StrCat(percent, "%"), 11, SvgDrawing::Anchor::kEnd);
  }
  const size_t label_stride = (matrix.size() + 15) / 16;
  for (size_t i = 0; i < matrix.size(); ++i) {
    const double hue = 300.0 * static_cast<double>(i) / static_cast<double>(matrix.size());
    const std::string color = absl::StrFormat("hsl(%.0f,65%%,45%%)", hue);
    std::vector<std::pair<double, double>> points;
    for (size_t j = i; j < matrix.size(); ++j) {
      points.emplace_back(left + step * static_cast<double>(j), top + kHeight * (1 - matrix[i][j]));
    }
    drawing->Polyline(points, color);
    if (i % label_stride != 0) continue;
    const double x = left + step * static_cast<double>(i);
    const size_t label = i / label_stride;
    drawing->Text(x, top + kHeight + 16, absl::StrCat(i), 11, SvgDrawing::Anchor::kMiddle);
    drawing->Text(left + kWidth + 14, top + 12 + 15 * static_cast<double>(label),
                  absl::StrCat("selected by ", i), 11, SvgDrawing::Anchor::kStart, color);
  }
  drawing->Text(left + kWidth / 2, top + kHeight + 34, "attending layer", 11,
                SvgDrawing::Anchor::kMiddle);
}

}  // namespace

double RecallResult::Loss(int32_t selecting_layer, int32_t attending_layer) const {
  const auto i = static_cast<size_t>(selecting_layer);
  const auto j = static_cast<size_t>(attending_layer);
  return 1.0 - (has_mass ? mass[i][j] / mass[j][j] : positions[i][j]);
}

absl::StatusOr<RecallResult> MeasureRecall(ServingModel* model,
                                           const std::vector<RecallPrompt>& prompts,
                                           const Selection& selection,
                                           const std::function<void(int64_t)>& on_progress) {
  if (prompts.empty()) return absl::InvalidArgumentError("recall needs at least one prompt");
  if (model->config.shape.num_layers < 4) {
    return absl::InvalidArgumentError(absl::StrCat("a model of ", model->config.shape.num_layers,
                                                   " layers runs full attention: no layer of "
                                                   "it is sparse"));
  }
  RecallRun run(model, selection);
  for (size_t i = 0; i < prompts.size(); ++i) {
    TIDAL_RETURN_IF_ERROR(run.RunPrompt(prompts[i]));
    on_progress(static_cast<int64_t>(i) + 1);
  }
  return run.Finish();
}

nlohmann::json ToJson(const RecallResult& result) {
  nlohmann::json json = {{"token_budget", result.token_budget},
                         {"decoded_tokens", result.num_decoded_tokens},
                         {"positions", result.positions}};
  if (result.has_mass) json["mass"] = result.mass;
  return json;
}

void PrintRecallTables(const RecallResult& result, std::ostream* out) {
  *out << absl::StreamFormat("budget %d, %d decoded tokens\n\n", result.token_budget,
                             result.num_decoded_tokens);
  PrintMatrix(result.positions,
              "per cent of a layer's top positions that a selection of another layer covers", out);
  if (!result.has_mass) {
    *out << "the attention itself is not known: this device does not tell it\n\n";
    return;
  }
  PrintMatrix(result.mass,
              "per cent of a layer's attention that a selection of another layer covers", out);
}

std::string RecallPlotSvg(const RecallResult& result) {
  constexpr double kPlotWidth = 600;
  constexpr double kPlotHeight = 330;
  SvgDrawing drawing;
  DrawPlot(result.positions, absl::StrCat("Top positions covered, budget ", result.token_budget),
           50, 40, &drawing);
  if (!result.has_mass) return drawing.Finish(kPlotWidth, kPlotHeight);
  DrawPlot(result.mass, absl::StrCat("Attention covered, budget ", result.token_budget),
           50 + kPlotWidth, 40, &drawing);
  return drawing.Finish(2 * kPlotWidth, kPlotHeight);
}

}  // namespace tidal
