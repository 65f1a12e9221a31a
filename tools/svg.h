// Writes small SVG drawings: text, rectangles and lines at pixel positions, on white.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace tidal {

class SvgDrawing {
 public:
  enum class Anchor { kStart, kMiddle, kEnd };

  void Rectangle(double x, double y, double width, double height, absl::string_view fill);
  // `text` is escaped. `size` in pixels.
  void Text(double x, double y, absl::string_view text, double size = 12,
            Anchor anchor = Anchor::kStart, absl::string_view fill = "#222");
  // A line through the points; one of a single point is a dot.
  void Polyline(const std::vector<std::pair<double, double>>& points, absl::string_view stroke);
  void Line(double x1, double y1, double x2, double y2, absl::string_view stroke = "#bbb");

  std::string Finish(double width, double height) const;

 private:
  std::string elements_;
};

// A colour from red (0) over yellow to green (1), light enough for dark text.
std::string ShareColor(double share);

}  // namespace tidal
