// A small line chart as SVG: axes, points with lines between them, a legend. Enough for a few dozen points.
#pragma once

#include <string>
#include <vector>

namespace kvt::cli {

struct ChartPoint {
  double x, y;
  std::string label;  // beside the point; may be empty
};

struct ChartSeries {
  std::string name;
  std::vector<ChartPoint> points;
  bool has_line = true;
  int colour = -1;  // of a fixed list, so that a name has one colour in several charts; -1: by its place among the series
};

enum class AxisScale { kLogarithmic, kLinear };

struct Chart {
  std::string title, x_label, y_label;
  std::vector<ChartSeries> series;
  AxisScale x_scale = AxisScale::kLogarithmic, y_scale = AxisScale::kLogarithmic;
};

// Points that are not above 0 are left out on a logarithmic axis; a linear one begins at 0. Empty if no point is left.
std::string chart_svg(const Chart& chart);

}  // namespace kvt::cli
