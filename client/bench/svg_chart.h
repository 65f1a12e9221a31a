// Line charts as SVG: axes with round ticks, units, a legend. Pure functions.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace tidal::client {

struct ChartSeries {
  std::string name;
  std::vector<std::pair<double, double>> points;  // by x
};

struct Chart {
  std::string title;
  std::string x_label;
  std::string y_label;
  std::vector<ChartSeries> series;
};

// Ticks at 1, 2 or 5 times a power of ten that cover [0, max], about `count` of them.
std::vector<double> LinearTicks(double max, int count);

// A whole SVG document, the charts side by side under `heading`. Both axes begin at 0, but a y axis
// whose positive values span more than a factor of 50 is logarithmic, and leaves out values of 0.
std::string RenderSvg(const std::string& heading, const std::vector<Chart>& charts);

}  // namespace tidal::client
