// What `kvturbo doctor` looks at: the self-test finds kernels that err, and GPUs are read from what Linux shows.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "machine_info.h"
#include "self_test.h"

namespace kvt::cli {
namespace {

namespace fs = std::filesystem;

TEST(SelfTest, PassesOnEveryTableOfThisMachine) {
  std::vector<std::string> names;
  const std::vector<SelfTestResult> results = run_self_test([&](const std::string& isa) { names.push_back(isa); });
  ASSERT_EQ(results.size(), names.size());
  ASSERT_FALSE(results.empty());
  EXPECT_EQ(names.front(), "scalar");
  for (const SelfTestResult& result : results) {
    EXPECT_EQ(result.problem, "") << result.isa;
    EXPECT_EQ(result.n_pages, 56u) << result.isa;
    EXPECT_GT(result.attention_error, 0) << result.isa;  // rounding: a comparison with itself would give 0
  }
}

TEST(SelfTest, FindsAWrongBit) {
  cpu::KernelTable broken = cpu::kKernelsScalar;
  broken.encode_row = [](const SideLayout& layout, const float* x, uint8_t* page, unsigned slot) {
    cpu::kKernelsScalar.encode_row(layout, x, page, slot);
    if (layout.codec == KVT_CODEC_K3V3 && layout.side == KVT_VALUE && slot == 42) page[0] ^= 0x10;
  };
  EXPECT_EQ(test_kernels(broken).problem, "k3v3 values of head dim 64 are not encoded to the bytes of docs/format.md");
}

TEST(SelfTest, FindsWrongAttention) {
  cpu::KernelTable broken = cpu::kKernelsScalar;
  broken.attend = [](const cpu::AttendBlock& block) {
    cpu::AttendBlock wrong = block;
    wrong.scale *= 1.2f;
    cpu::kKernelsScalar.attend(wrong);
  };
  EXPECT_NE(test_kernels(broken).problem.find("attention errs by "), std::string::npos) << test_kernels(broken).problem;
}

class MachineRoot {
 public:
  MachineRoot() : path_(fs::temp_directory_path() / ("kvturbo_root_" + std::to_string(getpid()))) {
    fs::create_directories(path_);
  }
  ~MachineRoot() { fs::remove_all(path_); }
  void write(const std::string& file, const std::string& text) {
    fs::create_directories((path_ / file).parent_path());
    std::ofstream(path_ / file) << text;
  }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

TEST(Gpus, WithTheirDrivers) {
  MachineRoot root;
  EXPECT_TRUE(gpus(root.path()).empty());
  const std::string bus = "sys/bus/pci/devices/";
  root.write(bus + "0000:00:02.0/class", "0x030000\n");
  root.write(bus + "0000:00:02.0/vendor", "0x8086\n");
  fs::create_symlink("../../bus/pci/drivers/i915", root.path() / (bus + "0000:00:02.0/driver"));
  root.write(bus + "0000:01:00.0/class", "0x030200\n");
  root.write(bus + "0000:01:00.0/vendor", "0x10de\n");
  root.write(bus + "0000:02:00.0/class", "0x020000\n");  // no display controller
  root.write(bus + "0000:02:00.0/vendor", "0x1002\n");
  EXPECT_EQ(gpus(root.path()), (std::vector<std::string>{"Intel GPU, driver i915", "NVIDIA GPU, no driver"}));
  root.write("proc/driver/nvidia/version",
             "NVRM version: NVIDIA UNIX x86_64 Kernel Module  575.57.08  Thu May 1 12:00:00 UTC 2025\nGCC version: 12.2\n");
  root.write("proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:  1\n");
  EXPECT_EQ(gpus(root.path()), (std::vector<std::string>{"NVIDIA H100 80GB HBM3, driver 575.57.08", "Intel GPU, driver i915"}));
}

}  // namespace
}  // namespace kvt::cli
