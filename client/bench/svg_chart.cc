#include "client/bench/svg_chart.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"

namespace tidal::client {
namespace {

// In pixels.
constexpr double kChartWidth = 440;
constexpr double kChartHeight = 360;
constexpr double kLeft = 70;
constexpr double kRight = 20;
constexpr double kTop = 76;
constexpr double kBottom = 52;
constexpr double kLegendSpacing = 18;

constexpr double kLogarithmicRatio = 50;
constexpr int kNumTicks = 5;
// The palette of Okabe and Ito, which colour-blind readers can tell apart.
constexpr std::array<absl::string_view, 5> kColors = {"#0072B2", "#D55E00", "#009E73", "#CC79A7",
                                                      "#E69F00"};

std::string Escape(absl::string_view text) {
  return absl::StrReplaceAll(text,
                             {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}});
}

// From values to pixels.
struct Axis {
  bool is_logarithmic = false;
  double low = 0;
  double high = 1;
  double first_pixel = 0;
  double last_pixel = 0;
  std::vector<double> ticks;

  bool Shows(double value) const { return !is_logarithmic || value > 0; }
  double Pixel(double value) const {
    const double part = is_logarithmic ? std::log(value / low) / std::log(high / low)
                                       : (value - low) / (high - low);
    return first_pixel + part * (last_pixel - first_pixel);
  }
};

Axis LinearAxis(double max) {
  Axis axis;
  axis.ticks = LinearTicks(max, kNumTicks);
  axis.high = axis.ticks.back();
  return axis;
}

// Ticks at 1, 2 and 5 times each power of ten, or at the powers alone where those were too many.
Axis LogarithmicAxis(double min, double max) {
  Axis axis;
  axis.is_logarithmic = true;
  const int first = static_cast<int>(std::floor(std::log10(min)));
  const int last = static_cast<int>(std::ceil(std::log10(max)));
  axis.low = std::pow(10, first);
  axis.high = std::pow(10, last);
  for (int exponent = first; exponent <= last; ++exponent) {
    for (const double factor : {1.0, 2.0, 5.0}) {
      const double tick = factor * std::pow(10, exponent);
      if (tick > axis.high * 1.001 || (factor > 1 && last - first > 2)) continue;
      axis.ticks.push_back(tick);
    }
  }
  return axis;
}

Axis AxisOfValues(const std::vector<double>& values, bool may_be_logarithmic) {
  double min = 0;
  double max = 0;
  for (const double value : values) {
    if (value > 0 && (min == 0 || value < min)) min = value;
    max = std::max(max, value);
  }
  if (may_be_logarithmic && min > 0 && max / min > kLogarithmicRatio) {
    return LogarithmicAxis(min, max);
  }
  return LinearAxis(max);
}

void AppendText(double x, double y, absl::string_view attributes, absl::string_view text,
                std::string* svg) {
  absl::StrAppendFormat(svg, "<text x=\"%.1f\" y=\"%.1f\" %s>%s</text>\n", x, y, attributes,
                        Escape(text));
}

void AppendLine(double x1, double y1, double x2, double y2, absl::string_view color,
                std::string* svg) {
  absl::StrAppendFormat(svg,
                        "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>\n",
                        x1, y1, x2, y2, color);
}

void AppendAxes(const Chart& chart, const Axis& x, const Axis& y, std::string* svg) {
  for (const double tick : y.ticks) {
    const double pixel = y.Pixel(tick);
    AppendLine(x.first_pixel, pixel, x.last_pixel, pixel, "#dddddd", svg);
    AppendText(x.first_pixel - 8, pixel + 4, "text-anchor=\"end\"", absl::StrFormat("%.4g", tick),
               svg);
  }
  for (const double tick : x.ticks) {
    const double pixel = x.Pixel(tick);
    AppendLine(pixel, y.first_pixel, pixel, y.first_pixel + 5, "#333333", svg);
    AppendText(pixel, y.first_pixel + 20, "text-anchor=\"middle\"", absl::StrFormat("%.4g", tick),
               svg);
  }
  AppendLine(x.first_pixel, y.first_pixel, x.last_pixel, y.first_pixel, "#333333", svg);
  AppendLine(x.first_pixel, y.first_pixel, x.first_pixel, y.last_pixel, "#333333", svg);
  AppendText((x.first_pixel + x.last_pixel) / 2, y.first_pixel + 40, "text-anchor=\"middle\"",
             chart.x_label, svg);
  const double middle = (y.first_pixel + y.last_pixel) / 2;
  const double left = x.first_pixel - 52;
  AppendText(
      left, middle,
      absl::StrFormat("text-anchor=\"middle\" transform=\"rotate(-90 %.1f %.1f)\"", left, middle),
      chart.y_label, svg);
}

void AppendSeries(const ChartSeries& series, const Axis& x, const Axis& y, absl::string_view color,
                  std::string* svg) {
  std::string line;
  std::string marks;
  for (const auto& [x_value, y_value] : series.points) {
    if (!y.Shows(y_value)) continue;
    const double x_pixel = x.Pixel(x_value);
    const double y_pixel = y.Pixel(y_value);
    absl::StrAppendFormat(&line, "%s%.1f,%.1f", line.empty() ? "" : " ", x_pixel, y_pixel);
    absl::StrAppendFormat(&marks,
                          "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" fill=\"%s\">"
                          "<title>%s: %.6g at %.6g</title></circle>\n",
                          x_pixel, y_pixel, color, Escape(series.name), y_value, x_value);
  }
  absl::StrAppendFormat(
      svg, "<polyline points=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"2\"/>\n%s", line,
      color, marks);
}

// One row above the plot.
void AppendLegend(const Chart& chart, double left, double y, std::string* svg) {
  constexpr double kCharacterWidth = 6.8;
  double x = left;
  for (std::size_t i = 0; i < chart.series.size(); ++i) {
    const std::string& name = chart.series[i].name;
    absl::StrAppendFormat(svg,
                          "<rect x=\"%.1f\" y=\"%.1f\" width=\"12\" height=\"4\" fill=\"%s\"/>\n",
                          x, y - 6, kColors[i % kColors.size()]);
    AppendText(x + 16, y, "", name, svg);
    x += 16 + kCharacterWidth * static_cast<double>(name.size()) + kLegendSpacing;
  }
}

void AppendChart(const Chart& chart, double left, std::string* svg) {
  std::vector<double> x_values;
  std::vector<double> y_values;
  for (const ChartSeries& series : chart.series) {
    for (const auto& [x, y] : series.points) {
      x_values.push_back(x);
      y_values.push_back(y);
    }
  }
  Axis x = AxisOfValues(x_values, /*may_be_logarithmic=*/false);
  x.first_pixel = left + kLeft;
  x.last_pixel = left + kChartWidth - kRight;
  Axis y = AxisOfValues(y_values, /*may_be_logarithmic=*/true);
  y.first_pixel = kChartHeight - kBottom;
  y.last_pixel = kTop;
  AppendText(x.first_pixel, kTop - 30, "font-size=\"14\" font-weight=\"bold\"", chart.title, svg);
  AppendLegend(chart, x.first_pixel, kTop - 12, svg);
  AppendAxes(chart, x, y, svg);
  for (std::size_t i = 0; i < chart.series.size(); ++i) {
    AppendSeries(chart.series[i], x, y, kColors[i % kColors.size()], svg);
  }
}

}  // namespace

std::vector<double> LinearTicks(double max, int count) {
  if (!(max > 0)) max = 1;
  const double rough = max / count;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  double step = 10 * power;
  for (const double factor : {5.0, 2.0, 1.0}) {
    if (factor * power >= rough * 0.999) step = factor * power;
  }
  const int num_steps = static_cast<int>(std::ceil(max / step * 0.999));
  std::vector<double> ticks;
  for (int i = 0; i <= num_steps; ++i) ticks.push_back(i * step);
  return ticks;
}

std::string RenderSvg(const std::string& heading, const std::vector<Chart>& charts) {
  const double width = kChartWidth * static_cast<double>(charts.size());
  std::string svg = absl::StrFormat(
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" "
      "viewBox=\"0 0 %.0f %.0f\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#333333\">\n"
      "<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n",
      width, kChartHeight, width, kChartHeight);
  AppendText(kLeft, 24, "font-size=\"15\"", heading, &svg);
  for (std::size_t i = 0; i < charts.size(); ++i) {
    AppendChart(charts[i], kChartWidth * static_cast<double>(i), &svg);
  }
  svg += "</svg>\n";
  return svg;
}

}  // namespace tidal::client
