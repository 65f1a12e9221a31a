#include "tools/svg.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace tidal {

void SvgDrawing::Rectangle(double x, double y, double width, double height,
                           absl::string_view fill) {
  absl::StrAppendFormat(
      &elements_, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"/>\n", x,
      y, width, height, fill);
}

void SvgDrawing::Text(double x, double y, absl::string_view text, double size, Anchor anchor,
                      absl::string_view fill) {
  const char* const anchors[] = {"start", "middle", "end"};
  absl::StrAppendFormat(&elements_,
                        "<text x=\"%.1f\" y=\"%.1f\" font-size=\"%.0f\" text-anchor=\"%s\" "
                        "fill=\"%s\">%s</text>\n",
                        x, y, size, anchors[static_cast<int>(anchor)], fill,
                        absl::StrReplaceAll(text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}}));
}

void SvgDrawing::Polyline(const std::vector<std::pair<double, double>>& points,
                          absl::string_view stroke) {
  std::string list;
  for (const auto& [x, y] : points) absl::StrAppendFormat(&list, "%.1f,%.1f ", x, y);
  absl::StrAppendFormat(&elements_,
                        "<polyline points=\"%s\" fill=\"none\" stroke=\"%s\" "
                        "stroke-width=\"2\"/>\n",
                        list, stroke);
  for (const auto& [x, y] : points) {
    absl::StrAppendFormat(&elements_, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>\n", x,
                          y, stroke);
  }
}

void SvgDrawing::Line(double x1, double y1, double x2, double y2, absl::string_view stroke) {
  absl::StrAppendFormat(&elements_,
                        "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>\n",
                        x1, y1, x2, y2, stroke);
}

std::string SvgDrawing::Finish(double width, double height) const {
  return absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" "
      "viewBox=\"0 0 %.0f %.0f\" font-family=\"sans-serif\">\n"
      "<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n%s</svg>\n",
      width, height, width, height, elements_);
}

std::string ShareColor(double share) {
  share = std::clamp(share, 0.0, 1.0);
  return absl::StrFormat("hsl(%.0f,70%%,72%%)", 120.0 * share);
}

}  // namespace tidal
