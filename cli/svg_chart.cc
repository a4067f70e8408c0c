#include "svg_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace kvt::cli {

namespace {

constexpr double kWidth = 760, kHeight = 560;
constexpr double kLeft = 70, kRight = 590, kTop = 40, kBottom = 510;  // of the plane; the legend is on its right

// Eight colours that colour-blind people can tell apart (Okabe and Ito).
constexpr std::array<const char*, 8> kColours = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                                 "#56b4e9", "#e69f00", "#000000", "#999999"};

std::string escaped(const std::string& text) {
  std::string result;
  for (const char c : text) {
    result += c == '<' ? "&lt;" : c == '&' ? "&amp;" : std::string(1, c);
  }
  return result;
}

std::string text_at(double x, double y, const std::string& anchor, const std::string& text, const std::string& more = "") {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\"{}>{}</text>\n", x, y, anchor, more, escaped(text));
}

std::string line(double x1, double y1, double x2, double y2, const char* colour) {
  return fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\"/>\n", x1, y1, x2, y2, colour);
}

struct Box {
  double left, top, right, bottom;
  bool overlaps(const Box& other) const {
    return left < other.right && other.left < right && top < other.bottom && other.top < bottom;
  }
};

// Puts each label beside its point where it covers no other label or point, if there is such a place.
class LabelPlacer {
 public:
  void add_point(double x, double y) { taken_.push_back({x - 4, y - 4, x + 4, y + 4}); }

  std::string place(double x, double y, const std::string& label) {
    const double width = 7.2 * static_cast<double>(label.size());
    // The text's base line, from the nearest places to the farthest; on the right of the point, then on its left.
    for (const double rise : {4.0, -3.0, 11.0, -9.0, 17.0, -15.0, 23.0}) {
      for (const bool is_right : {true, false}) {
        const double left = is_right ? x + 7 : x - 7 - width;
        const Box box{left, y + rise - 9, left + width, y + rise + 2};
        const auto overlaps = [&](const Box& other) { return box.overlaps(other); };
        if (left < kLeft || std::any_of(taken_.begin(), taken_.end(), overlaps)) continue;
        taken_.push_back(box);
        return text_at(is_right ? x + 7 : x - 7, y + rise, is_right ? "start" : "end", label);
      }
    }
    return text_at(x + 7, y + 4, "start", label);
  }

 private:
  std::vector<Box> taken_;
};

// The largest of 1, 2, 5 times a power of ten that is not above the value.
double tick_below(double value) {
  const double power = std::pow(10, std::floor(std::log10(value)));
  return power * (value >= 5 * power ? 5 : value >= 2 * power ? 2 : 1);
}
double tick_above(double value) { return 1 / tick_below(1 / value); }

// The range of the data and a position for each value.
struct Axis {
  explicit Axis(AxisScale s) : scale(s), low(s == AxisScale::kLinear ? 0 : std::numeric_limits<double>::infinity()) {}

  AxisScale scale;
  double low, high = -std::numeric_limits<double>::infinity();
  double from = 0, to = 0;  // positions of low and high

  bool has(double value) const { return std::isfinite(value) && (scale == AxisScale::kLinear ? value >= 0 : value > 0); }
  void include(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  double at(double value) const {
    if (scale == AxisScale::kLinear) return from + (to - from) * (value - low) / (high - low);
    return from + (to - from) * std::log(value / low) / std::log(high / low);
  }

  // About six round numbers; binary: powers of two between them, as for tokens.
  std::vector<double> linear_ticks(bool is_binary) const {
    std::vector<double> ticks;
    const double least = (high - low) / 8, step = is_binary ? std::exp2(std::ceil(std::log2(least))) : tick_above(least);
    for (double tick = 0; tick <= high * 1.001; tick += step) ticks.push_back(tick);
    return ticks;
  }
  std::vector<double> binary_ticks() const {
    std::vector<double> ticks;
    for (double tick = std::exp2(std::ceil(std::log2(low))); tick <= high; tick *= 2) ticks.push_back(tick);
    return ticks;
  }
  // 1, 2, 5 times powers of ten. The axis begins and ends with one, but for rounding.
  std::vector<double> decimal_ticks() const {
    std::vector<double> ticks;
    for (double power = std::pow(10, std::floor(std::log10(low) + 1e-6)); power <= high * 1.001; power *= 10) {
      for (const double tick : {power, 2 * power, 5 * power}) {
        if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push_back(tick);
      }
    }
    return ticks;
  }
};

// Room around the points; also for a single one.
void widen_x(Axis& x) {
  if (x.scale == AxisScale::kLinear) {
    x.high = x.high > 0 ? x.high * 1.04 : 1;
  } else {
    x.low /= 1.25;
    x.high *= 1.25;
  }
}
void widen_y(Axis& y) {
  if (y.scale == AxisScale::kLinear) {
    y.high = y.high > 0 ? y.high * 1.08 : 1;
  } else {
    y.low = tick_below(y.low / 1.1);
    y.high = tick_above(y.high * 1.1);
  }
}

}  // namespace

std::string chart_svg(const Chart& chart) {
  Axis x(chart.x_scale), y(chart.y_scale);
  const auto is_shown = [&](const ChartPoint& point) { return x.has(point.x) && y.has(point.y); };
  for (const ChartSeries& series : chart.series) {
    for (const ChartPoint& point : series.points) {
      if (!is_shown(point)) continue;
      x.include(point.x);
      y.include(point.y);
    }
  }
  if (x.low > x.high || y.low > y.high) return "";
  widen_x(x);
  widen_y(y);
  x.from = kLeft, x.to = kRight, y.from = kBottom, y.to = kTop;

  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" "
      "font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"{0}\" height=\"{1}\" fill=\"white\"/>\n",
      kWidth, kHeight);
  svg += text_at((kLeft + kRight) / 2, 22, "middle", chart.title, " font-size=\"14\"");
  for (const double tick : x.scale == AxisScale::kLinear ? x.linear_ticks(x.high >= 1024) : x.binary_ticks()) {
    svg += line(x.at(tick), kTop, x.at(tick), kBottom, "#e0e0e0") +
           text_at(x.at(tick), kBottom + 17, "middle", fmt::format("{:g}", tick));
  }
  for (const double tick : y.scale == AxisScale::kLinear ? y.linear_ticks(false) : y.decimal_ticks()) {
    svg += line(kLeft, y.at(tick), kRight, y.at(tick), "#e0e0e0") +
           text_at(kLeft - 6, y.at(tick) + 4, "end", fmt::format("{:g}", tick));
  }
  svg += line(kLeft, kBottom, kRight, kBottom, "black") + line(kLeft, kTop, kLeft, kBottom, "black");
  svg += text_at((kLeft + kRight) / 2, kBottom + 37, "middle", chart.x_label);
  const double middle = (kTop + kBottom) / 2;
  svg += text_at(18, middle, "middle", chart.y_label, fmt::format(" transform=\"rotate(-90 18 {})\"", middle));

  LabelPlacer labels;
  for (const ChartSeries& series : chart.series) {
    for (const ChartPoint& point : series.points) {
      if (is_shown(point)) labels.add_point(x.at(point.x), y.at(point.y));
    }
  }
  double legend_y = kTop + 8;
  for (std::size_t i = 0; i < chart.series.size(); ++i) {
    const ChartSeries& series = chart.series[i];
    const std::size_t number = series.colour >= 0 ? static_cast<std::size_t>(series.colour) : i;
    const char* const colour = kColours[number % kColours.size()];
    const char* const dashes = number < kColours.size() ? "" : " stroke-dasharray=\"6 3\"";  // the colours have begun again
    std::string path;
    for (const ChartPoint& point : series.points) {
      if (!is_shown(point)) continue;
      path += fmt::format("{:.1f},{:.1f} ", x.at(point.x), y.at(point.y));
      svg += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\" fill=\"{}\"/>\n", x.at(point.x), y.at(point.y), colour);
      if (!point.label.empty()) svg += labels.place(x.at(point.x), y.at(point.y), point.label);
    }
    if (path.empty()) continue;
    if (series.has_line) {
      svg +=
          fmt::format("<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\"{}/>\n", path, colour, dashes);
      svg += fmt::format("<line x1=\"{0}\" y1=\"{1}\" x2=\"{2}\" y2=\"{1}\" stroke=\"{3}\" stroke-width=\"1.5\"{4}/>\n",
                         kRight + 6, legend_y - 4, kRight + 26, colour, dashes);
    }
    svg += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\" fill=\"{}\"/>\n", kRight + 16, legend_y - 4, colour);
    svg += text_at(kRight + 32, legend_y, "start", series.name);
    legend_y += 18;
  }
  return svg + "</svg>\n";
}

}  // namespace kvt::cli
