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
};

struct Chart {
  std::string title, x_label, y_label;
  std::vector<ChartSeries> series;
};

// Both axes are logarithmic. x > 0; points with y <= 0 are left out. Empty if no point is left.
std::string chart_svg(const Chart& chart);

}  // namespace kvt::cli
