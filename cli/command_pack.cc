#include "command_pack.h"

#include "child_process.h"
#include "cli_error.h"
#include "file_hash.h"
#include "model_store.h"
#include "slot_file.h"
#include "state_container.h"
#include "terminal_output.h"
#include "whole_file.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <array>

namespace kvt::cli {

namespace {

constexpr const char* kExtension = ".kvts";

// The first 64 bits of the model's SHA-256; 0 without a model.
uint64_t model_hash(const std::string& model) {
  if (model.empty()) return 0;
  return std::stoull(sha256_of(resolve_model(model)).substr(0, 16), nullptr, 16);
}

// Shows how far it is, and ends the work when a signal came.
class WorkShown {
 public:
  explicit WorkShown(std::string what) : what_(std::move(what)) {}
  void operator()(double done) {
    if (received_signal() != 0) throw CliError(kExitFailure, what_, "interrupted", "");
    if (status_.visible()) status_.show(fmt::format("{} {:.0f} %", what_, 100 * done));
  }

 private:
  std::string what_;
  StatusLine status_;
};

void declare_common(CLI::App& command, PackOptions& options) {
  command.add_option("-o,--output", options.output, "the file to write")->type_name("FILE");
  command.add_option("-m,--model", options.model, "the model that the slot is of: a name of `kvturbo models`, or a GGUF file")->type_name("MODEL");
  command.add_flag("--force", options.force, "replace a file that is there");
  command.add_flag("--json", options.json, "print one JSON object");
}

void print_figures(const std::string& output, uint64_t slot_bytes, uint64_t n_written, const PackFigures& figures) {
  const double ratio = static_cast<double>(slot_bytes) / static_cast<double>(n_written);
  fmt::print("{}: {} -> {} bytes, {:.2f} times smaller; {} of {} rows as codes\n", output, with_thousands(slot_bytes), with_thousands(n_written), ratio,
             with_thousands(figures.rows_as_codes), with_thousands(figures.rows));
}

}  // namespace

CLI::App* declare_pack(CLI::App& app, PackOptions& options) {
  CLI::App* command = app.add_subcommand("pack", "store a saved slot of llama-server as codes: about a quarter of its size");
  command->add_option("file", options.file, "a slot or session file that a llama.cpp with the plug-in saved")->required()->type_name("FILE");
  declare_common(*command, options);
  command->footer("With -m the container names the model, and unpack -m refuses another one.\nExample: kvturbo pack slots/chat.bin -m smollm2-135m");
  return command;
}

CLI::App* declare_unpack(CLI::App& app, PackOptions& options) {
  CLI::App* command = app.add_subcommand("unpack", "the saved slot that kvturbo pack stored, to the byte");
  command->add_option("file", options.file, "what kvturbo pack wrote")->required()->type_name("FILE");
  declare_common(*command, options);
  command->add_flag("--plain", options.plain, "values without codes in them, for a stock llama.cpp");
  command->footer("Example: kvturbo unpack slots/chat.bin.kvts -o slots/chat.bin");
  return command;
}

int command_pack(const PackOptions& options) {
  const MappedFile file(options.file);
  const uint64_t hash = model_hash(options.model);
  const std::string output = options.output.empty() ? options.file + kExtension : options.output;
  NewFile out(output, options.force);
  std::array<uint8_t, kContainerHeaderBytes> header{};
  uint64_t n_written = header.size();
  out.write(header);
  PackFigures figures;
  try {
    WorkShown shown("packing");
    figures = pack_slot(
        file.bytes(), hash, [&](std::span<const uint8_t> bytes) { out.write(bytes), n_written += bytes.size(); }, std::ref(shown), header.data());
  } catch (const SlotFileError& error) {
    throw CliError(kExitFailure, options.file, error.what(), "pack takes what llama-server --slot-save-path and llama_state_save_file write");
  }
  out.write_at_start(header);
  out.finish();
  if (options.json) {
    fmt::print("{}\n", nlohmann::ordered_json{{"output", output},
                                              {"bytes", n_written},
                                              {"slot_bytes", file.bytes().size()},
                                              {"rows", figures.rows},
                                              {"rows_as_codes", figures.rows_as_codes}}
                           .dump());
  } else {
    print_figures(output, file.bytes().size(), n_written, figures);
  }
  if (figures.rows > 0 && figures.rows_as_codes == 0) {
    fmt::print(stderr, "kvturbo: {}: it has no rows with codes: save it with the plug-in, without KVTURBO_STATE=f16\n", options.file);
  }
  return kExitOk;
}

int command_unpack(const PackOptions& options) {
  const MappedFile file(options.file);
  std::string output = options.output;
  if (output.empty()) {
    const std::filesystem::path path(options.file);
    if (path.extension() != kExtension) throw CliError(kExitUsage, options.file, std::string("its name does not end in ") + kExtension, "name the output with -o");
    output = (path.parent_path() / path.stem()).string();
  }
  try {
    const ContainerHeader header = read_container_header(file.bytes());
    const uint64_t hash = model_hash(options.model);
    if (hash != 0 && header.model_hash != 0 && hash != header.model_hash) {
      throw CliError(kExitFailure, options.file, "it was saved with another model than " + options.model, "");
    }
    if (hash != 0 && header.model_hash == 0) throw CliError(kExitFailure, options.file, "it does not say of which model it is", "leave out -m");
    NewFile out(output, options.force);
    WorkShown shown("unpacking");
    unpack_slot(file.bytes(), {options.plain, false}, [&](std::span<const uint8_t> bytes) { out.write(bytes); }, std::ref(shown));
    out.finish();
    if (options.json) {
      fmt::print("{}\n", nlohmann::ordered_json{{"output", output}, {"slot_bytes", header.file_bytes}}.dump());
    } else {
      fmt::print("{}: {} bytes\n", output, with_thousands(header.file_bytes));
    }
  } catch (const ContainerError& error) {
    throw CliError(kExitFailure, options.file, error.what(), "");
  }
  return kExitOk;
}

}  // namespace kvt::cli
