#include "cli_options.h"

#include "cli_error.h"
#include "kvturbo/kvturbo.h"

namespace kvt::cli {

void add_common_options(CLI::App& command, CommonOptions& options) {
  command.add_option("--codec", options.codec, "codec of the cache: " + codec_names() + "")
      ->envname("KVTURBO_CODEC")
      ->type_name("NAME");
  command.add_option("--condition", options.condition, "subtract the mean of the keys and balance their channels: on (default) or off")
      ->envname("KVTURBO_CONDITION")
      ->type_name("on|off");
  command.add_option("--sinks", options.sinks, "first cells of each stream that are kept exact as well: 0 to 64 (default 4)")
      ->envname("KVTURBO_SINKS")
      ->type_name("N");
  command.add_option("--recent", options.recent, "newest tokens that each query attends exactly: 0 to 64 (default 48)")
      ->envname("KVTURBO_RECENT")
      ->type_name("N");
  command.add_option("--isa", options.isa, "kernel table to use instead of the best one: scalar, avx2, avxvnni, avx512, neon")
      ->envname("KVTURBO_ISA")
      ->type_name("NAME");
  command.add_option("--host", options.host_folder, "folder with llama.cpp's programs, instead of searching")
      ->envname("KVTURBO_HOST")
      ->type_name("DIR");
  command.add_option("--plugin", options.plugin_path, "path of libggml-kvturbo.so, instead of searching")
      ->envname("KVTURBO_PLUGIN")
      ->type_name("FILE");
}

std::string codec_names() {
  std::string names;
  for (int id = 0; const char* name = kvt_codec_name(static_cast<kvt_codec_id>(id)); ++id) {
    names += names.empty() ? "" : ", ";
    names += name;
  }
  return names;
}

void check_codec_name(const std::string& codec) {
  kvt_codec_id id;
  if (codec.empty() || kvt_codec_from_name(codec.c_str(), &id) == KVT_OK) return;
  throw CliError(kExitUsage, "codec '" + codec + "'", "unknown", "known codecs: " + codec_names());
}

}  // namespace kvt::cli
