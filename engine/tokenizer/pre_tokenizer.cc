#include "engine/tokenizer/pre_tokenizer.h"

#include <algorithm>

#include "engine/backend/status_macros.h"
#include "engine/tokenizer/normalizer.h"

namespace tidal::tokenization {
namespace {

std::vector<Section> SplitAtLiteral(std::string_view text, std::string_view literal) {
  std::vector<Section> sections;
  size_t pos = 0;
  for (size_t found; (found = text.find(literal, pos)) != std::string_view::npos;) {
    if (pos < found) sections.push_back({pos, found, false});
    pos = found + literal.size();
    sections.push_back({found, pos, true});
  }
  if (pos < text.size()) sections.push_back({pos, text.size(), false});
  return sections;
}

void AppendPieces(std::string_view text, const std::vector<Section>& sections,
                  std::vector<std::string_view>* pieces) {
  for (const Section& section : sections) {
    if (section.begin < section.end) {
      pieces->push_back(text.substr(section.begin, section.end - section.begin));
    }
  }
}

// Joins each match with the section before it, unless that is a match too. On reversed sections
// this joins with the next one.
std::vector<Section> MergeMatches(const std::vector<Section>& sections) {
  std::vector<Section> merged;
  bool previous_is_match = false;
  for (const Section& section : sections) {
    if (section.is_match && !previous_is_match && !merged.empty()) {
      merged.back().begin = std::min(merged.back().begin, section.begin);
      merged.back().end = std::max(merged.back().end, section.end);
    } else {
      merged.push_back(section);
    }
    previous_is_match = section.is_match;
  }
  return merged;
}

// Joins neighbours of the same kind.
std::vector<Section> MergeRuns(const std::vector<Section>& sections) {
  std::vector<Section> merged;
  for (const Section& section : sections) {
    if (!merged.empty() && section.is_match == merged.back().is_match) {
      merged.back().end = section.end;
    } else {
      merged.push_back(section);
    }
  }
  return merged;
}

// One step's work on one piece.
class StepRunner {
 public:
  StepRunner(bool is_text_start, PieceArena* arena, std::vector<std::string_view>* pieces)
      : is_text_start_(is_text_start), arena_(arena), pieces_(pieces) {}

  absl::Status operator()(const SplitStep& step) const {
    std::vector<Section> sections;
    if (const auto* regex = std::get_if<Regex>(&step.pattern)) {
      TIDAL_RETURN_IF_ERROR(regex->Split(text_, &arena_->regex_workspace, &sections));
    } else {
      sections = SplitAtLiteral(text_, std::get<std::string>(step.pattern));
    }
    if (step.invert) {
      for (Section& section : sections) section.is_match = !section.is_match;
    }
    AppendPieces(text_, ApplySplitBehavior(sections, step.behavior), pieces_);
    return absl::OkStatus();
  }

  absl::Status operator()(const MetaspaceStep& step) const {
    TIDAL_ASSIGN_OR_RETURN(std::string replaced,
                           ReplaceAll(text_, {" ", step.replacement}, MaxGrownSize(text_.size())));
    const bool prepends = step.prepend_scheme == PrependScheme::kAlways ||
                          (step.prepend_scheme == PrependScheme::kFirst && is_text_start_);
    if (prepends && !replaced.starts_with(step.replacement)) replaced.insert(0, step.replacement);
    const std::string_view text = arena_->texts.emplace_back(std::move(replaced));
    if (!step.split) {
      pieces_->push_back(text);
      return absl::OkStatus();
    }
    AppendPieces(
        text,
        ApplySplitBehavior(SplitAtLiteral(text, step.replacement), SplitBehavior::kMergedWithNext),
        pieces_);
    return absl::OkStatus();
  }

  absl::Status operator()(const ByteLevelStep& step) const {
    std::string_view text = text_;
    if (step.add_prefix_space && !text.starts_with(' ')) {
      text = arena_->texts.emplace_back(" ").append(text_);
    }
    if (!step.pattern) {
      pieces_->push_back(text);
      return absl::OkStatus();
    }
    std::vector<Section> sections;
    TIDAL_RETURN_IF_ERROR(step.pattern->Split(text, &arena_->regex_workspace, &sections));
    AppendPieces(text, sections, pieces_);
    return absl::OkStatus();
  }

  // `text` is not empty.
  void SetText(std::string_view text, bool is_first) {
    text_ = text;
    is_text_start_ = is_text_start_ && is_first;
  }

 private:
  std::string_view text_;
  bool is_text_start_;
  PieceArena* arena_;
  std::vector<std::string_view>* pieces_;
};

}  // namespace

std::vector<Section> ApplySplitBehavior(const std::vector<Section>& sections,
                                        SplitBehavior behavior) {
  std::vector<Section> result;
  switch (behavior) {
    case SplitBehavior::kIsolated:
      return sections;
    case SplitBehavior::kRemoved:
      std::copy_if(sections.begin(), sections.end(), std::back_inserter(result),
                   [](const Section& section) { return !section.is_match; });
      return result;
    case SplitBehavior::kContiguous:
      return MergeRuns(sections);
    case SplitBehavior::kMergedWithPrevious:
      return MergeMatches(sections);
    case SplitBehavior::kMergedWithNext:
      break;
  }
  result = MergeMatches({sections.rbegin(), sections.rend()});
  std::reverse(result.begin(), result.end());
  return result;
}

bool PreTokenizer::is_byte_level() const {
  return !steps_.empty() && std::holds_alternative<ByteLevelStep>(steps_.back());
}

absl::Status PreTokenizer::Split(std::string_view text, bool is_text_start, PieceArena* arena,
                                 std::vector<std::string_view>* pieces) const {
  pieces->clear();
  if (text.empty()) return absl::OkStatus();
  pieces->push_back(text);
  std::vector<std::string_view> split;
  for (const Step& step : steps_) {
    split.clear();
    StepRunner runner(is_text_start, arena, &split);
    for (const std::string_view& piece : *pieces) {
      runner.SetText(piece, &piece == pieces->data());
      TIDAL_RETURN_IF_ERROR(std::visit(runner, step));
    }
    pieces->swap(split);
  }
  return absl::OkStatus();
}

}  // namespace tidal::tokenization
