// kvturbo bench report: what bench and eval have measured, as one page and as charts.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "svg_chart.h"

namespace kvt::cli {

struct ReportOptions {
  std::vector<std::string> inputs;                // outputs of bench model, bench kernel and eval with --json
  std::string page_path = "kvturbo-report.html";  // "-": standard output
  std::string chart_folder;                       // also each chart as SVG, and as PNG if rsvg-convert is there; empty: no
  std::string title = "kvturbo: measured";
};

struct ReportTable {
  std::vector<std::string> head;
  std::vector<std::vector<std::string>> rows;
};

// A chart, the numbers it shows, and what to know about them.
struct ReportSection {
  std::string name;  // of the chart's file: "speed_depth_smollm2-135m_tg64"
  std::string heading, note;
  std::string chart;  // SVG; may be empty
  ReportTable table;
};

// Throws CliError for a file that is none of the three, naming it.
std::vector<ReportSection> report_sections(const std::vector<std::string>& inputs);

// One self-contained HTML page.
std::string report_page(const std::string& title, const std::vector<ReportSection>& sections);

// Writes page and charts; returns their paths.
std::vector<std::filesystem::path> write_report(const ReportOptions& options);

}  // namespace kvt::cli
