/* The two units of the nightly timer, as text. packaging/systemd has the same with the places of an installed attune. */
#ifndef CLI_SERVICE_UNITS_H
#define CLI_SERVICE_UNITS_H

#include "cli/cli.h"

#define SERVICE_NAME "attune-nightly.service"
#define TIMER_NAME "attune-nightly.timer"
/* How a file begins that attune wrote: any other is somebody else's. */
#define UNIT_MARKER "# Written by attune service install."

/* Both paths absolute; what a unit file cannot hold is told: CLI_FAILED. Texts are malloc'ed. */
int units_make(const char *executable, const char *home, char **service, char **timer);
/* The line of a crontab that does as much, malloc'ed; NULL: no memory. */
char *units_crontab(const char *executable, const char *home);

#endif
