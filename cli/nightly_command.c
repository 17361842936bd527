#include "cli/cli.h"
const struct command nightly_command = {.name = "nightly"};
