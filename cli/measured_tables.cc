#include "measured_tables.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <sstream>

namespace kvt::cli {

namespace {

// The cells of a line of a markdown table, without spaces and code marks; none for another line or the line under a heading.
std::vector<std::string> table_cells(const std::string& line) {
  std::vector<std::string> cells;
  if (!line.starts_with("| ")) return cells;
  std::istringstream parts(line.substr(1));
  for (std::string part; std::getline(parts, part, '|');) {
    std::erase(part, '`');
    const std::size_t first = part.find_first_not_of(' '), last = part.find_last_not_of(' ');
    cells.push_back(first == std::string::npos ? "" : part.substr(first, last - first + 1));
  }
  return cells;
}

// The number at the head of a cell, "0.00421 ± 0.000097" -> 0.00421; 0 for "-".
double number_of(const std::string& cell) { return std::strtod(cell.c_str(), nullptr); }

// By straight lines between the points, and beyond the last one.
double line_at(const std::map<double, double>& points, double x) {
  auto right = points.lower_bound(x);
  if (right == points.end()) right = std::prev(points.end());
  if (right == points.begin()) ++right;
  const auto left = std::prev(right);
  return left->second + (right->second - left->second) * (x - left->first) / (right->first - left->first);
}

}  // namespace

std::vector<SpeedPoint> measured_speeds(const std::string& page, const std::string& isa) {
  std::vector<SpeedPoint> points, others;
  std::istringstream lines(page);
  bool is_in_section = false, is_for_avx2 = false;
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("#")) is_in_section = line == "### A whole model";
    if (!is_in_section) continue;
    const std::vector<std::string> cells = table_cells(line);
    if (cells.empty() && line.find("bench model") != std::string::npos) is_for_avx2 = false;
    if (cells.empty() && line.find("--isa avx2") != std::string::npos) is_for_avx2 = true;
    if (cells.size() < 5 || !cells[0].starts_with("tg")) continue;
    const bool is_preferred = is_for_avx2 == (isa != "avx512");
    (is_preferred ? points : others).push_back({cells[2], number_of(cells[1]), number_of(cells[3]), number_of(cells[4])});
  }
  points.insert(points.end(), others.begin(), others.end());
  return points;
}

std::vector<MeasuredLoss> measured_losses(const std::string& page) {
  std::vector<MeasuredLoss> losses;
  std::istringstream lines(page);
  MeasuredLoss heading;
  for (std::string line; std::getline(lines, line);) {
    // "### smollm2-135m, english, 4 x 1024 tokens"
    char model[64], text[64];
    unsigned n_chunks;
    if (line.starts_with("#")) {
      heading = {};
      if (std::sscanf(line.c_str(), "### %63[^,], %63[^,], %u x %u tokens", model, text, &n_chunks, &heading.n_ctx) == 4) {
        heading.model = model;
        heading.text = text;
      }
    }
    const std::vector<std::string> cells = table_cells(line);
    if (heading.model.empty() || cells.size() < 4 || cells[0] == "cache" || cells[0].starts_with("-")) continue;
    losses.push_back({heading.model, heading.text, heading.n_ctx, cells[0], number_of(cells[3])});
  }
  return losses;
}

SpeedCurve::SpeedCurve(std::vector<SpeedPoint> points, double weight_bytes, double f16_bytes_per_token)
    : points_(std::move(points)), weight_bytes_(weight_bytes), f16_bytes_per_token_(f16_bytes_per_token) {}

std::optional<SpeedCurve::Value> SpeedCurve::at(const std::string& cache, double share) const {
  std::map<double, double> stock_time, time;  // by depth, in seconds a token; the first measurement of each counts
  for (const SpeedPoint& point : points_) {
    if (point.cache == "stock f16" && point.tokens_per_second > 0) stock_time.emplace(point.depth, 1 / point.tokens_per_second);
  }
  for (const SpeedPoint& point : points_) {
    const auto stock = stock_time.find(point.depth);
    if (point.cache == cache && stock != stock_time.end() && point.over_stock_f16 > 0) {
      time.emplace(point.depth, stock->second / point.over_stock_f16);
    }
  }
  if (time.size() < 2 || f16_bytes_per_token_ <= 0) return std::nullopt;
  const double depth = share * weight_bytes_ / f16_bytes_per_token_;
  return Value{line_at(stock_time, depth) / line_at(time, depth), depth > 1.01 * time.rbegin()->first};
}

}  // namespace kvt::cli
