// kvturbo eval: declared beside the other commands, with its options here.
#pragma once

#include "eval_settings.h"

namespace kvt::cli {

// options must outlive app.
CLI::App* declare_eval(CLI::App& app, EvalOptions& options);

int command_eval(EvalOptions options);

}  // namespace kvt::cli
