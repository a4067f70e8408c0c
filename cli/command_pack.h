// kvturbo pack, kvturbo unpack: saved slots as containers and back.
#pragma once

#include <CLI/CLI.hpp>

#include <string>

namespace kvt::cli {

struct PackOptions {
  std::string file;
  std::string output;  // -o; empty: pack appends .kvts, unpack takes it away
  std::string model;   // -m: its hash goes into the container, or is compared
  bool force = false;
  bool plain = false;  // unpack only
  bool json = false;
};

CLI::App* declare_pack(CLI::App& app, PackOptions& options);
CLI::App* declare_unpack(CLI::App& app, PackOptions& options);
int command_pack(const PackOptions& options);
int command_unpack(const PackOptions& options);

}  // namespace kvt::cli
