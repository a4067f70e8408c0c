#include "machine_info.h"

#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <system_error>

namespace kvt::cli {

namespace fs = std::filesystem;

namespace {

std::string first_line(const fs::path& file) {
  std::string line;
  std::getline(std::ifstream(file) >> std::ws, line);
  return line;
}

// "Model:           NVIDIA H100" -> "NVIDIA H100"
std::string field(const fs::path& file, const std::string& name) {
  std::ifstream stream(file);
  for (std::string line; std::getline(stream, line);) {
    if (!line.starts_with(name)) continue;
    const std::size_t start = line.find_first_not_of(" \t", name.size());
    return start == std::string::npos ? "" : line.substr(start);
  }
  return "";
}

// "NVRM version: NVIDIA UNIX x86_64 Kernel Module  575.57.08  Tue ..." -> "575.57.08"
std::string nvidia_driver(const fs::path& root) {
  const std::string line = first_line(root / "proc/driver/nvidia/version");
  for (std::size_t at = 0; (at = line.find("  ", at)) != std::string::npos;) {
    at = line.find_first_not_of(' ', at);
    if (at == std::string::npos) break;
    const std::string word = line.substr(at, line.find(' ', at) - at);
    if (word.find('.') != std::string::npos && word.find_first_not_of("0123456789.") == std::string::npos) return word;
  }
  return "";
}

std::vector<fs::path> entries_of(const fs::path& folder) {
  std::vector<fs::path> entries;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) entries.push_back(entry.path());
  std::sort(entries.begin(), entries.end());
  return entries;
}

}  // namespace

MemoryInfo memory_info() {
  MemoryInfo info;
  std::ifstream meminfo("/proc/meminfo");
  for (std::string line; std::getline(meminfo, line);) {
    unsigned long long kib;
    if (std::sscanf(line.c_str(), "MemTotal: %llu kB", &kib) == 1) info.total_bytes = std::uint64_t{kib} << 10;
    if (std::sscanf(line.c_str(), "MemAvailable: %llu kB", &kib) == 1) info.available_bytes = std::uint64_t{kib} << 10;
  }
  unsigned long long limit, used;
  if (std::sscanf(first_line("/sys/fs/cgroup/memory.max").c_str(), "%llu", &limit) == 1 &&
      std::sscanf(first_line("/sys/fs/cgroup/memory.current").c_str(), "%llu", &used) == 1) {
    info.total_bytes = std::min<std::uint64_t>(info.total_bytes, limit);
    info.available_bytes = std::min<std::uint64_t>(info.available_bytes, limit - std::min(used, limit));
  }
  rlimit addresses{};
  if (getrlimit(RLIMIT_AS, &addresses) == 0 && addresses.rlim_cur != RLIM_INFINITY)
    info.address_space_bytes = addresses.rlim_cur;
  return info;
}

std::vector<std::string> gpus(const fs::path& root) {
  std::vector<std::string> found;
  const std::string driver = nvidia_driver(root);
  for (const fs::path& gpu : entries_of(root / "proc/driver/nvidia/gpus")) {
    const std::string model = field(gpu / "information", "Model:");
    found.push_back((model.empty() ? "NVIDIA GPU" : model) + (driver.empty() ? "" : ", driver " + driver));
  }
  // Others, and NVIDIA's whose driver is not loaded: display controllers on the PCI bus.
  for (const fs::path& device : entries_of(root / "sys/bus/pci/devices")) {
    if (!first_line(device / "class").starts_with("0x03")) continue;
    const std::string vendor = first_line(device / "vendor");
    std::error_code error;
    const fs::path link = fs::read_symlink(device / "driver", error);
    const std::string module = error ? "no driver" : "driver " + link.filename().string();
    if (vendor == "0x1002") found.push_back("AMD GPU, " + module);
    if (vendor == "0x8086") found.push_back("Intel GPU, " + module);
    if (vendor == "0x10de" && driver.empty()) found.push_back("NVIDIA GPU, " + module);
  }
  return found;
}

}  // namespace kvt::cli
