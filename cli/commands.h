// The four commands. Each returns the exit code or throws CliError.
#pragma once

#include "cli_options.h"

namespace kvt::cli {

int command_run(const RunOptions& options);
int command_serve(const ServeOptions& options);
int command_doctor(const DoctorOptions& options);
int command_models(const ModelsOptions& options);

}  // namespace kvt::cli
