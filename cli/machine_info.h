// What Linux says about this machine's memory and GPUs.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace kvt::cli {

struct MemoryInfo {
  std::uint64_t total_bytes = 0, available_bytes = 0;  // available: to a new program, within the limit of its control group
  std::uint64_t address_space_bytes = 0;               // ulimit -v; 0: not limited
};
MemoryInfo memory_info();

// One line for each GPU: "NVIDIA H100 80GB HBM3, driver 575.57.08". root: "/" but for tests.
std::vector<std::string> gpus(const std::filesystem::path& root = "/");

}  // namespace kvt::cli
