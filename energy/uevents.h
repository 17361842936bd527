/* What the kernel tells about devices as it happens: a netlink socket, which reaches no network.
 *
 * A uevent is a hint to look, never evidence: what counts is read from sysfs. Containers and SELinux may keep them
 * back; then the poll alone sees changes. */
#ifndef ENERGY_UEVENTS_H
#define ENERGY_UEVENTS_H

#include <stddef.h>

/* A descriptor to poll and to close, or -1: there are none to be had. */
int uevents_open(void);
/* Takes all that is waiting, without blocking. 1: some of it is of a power supply or a thermal zone, or something was
 * lost. */
int uevents_take(int fd);
/* "add@/devices/x" and "KEY=value" fields, each ended by a NUL. 1: of the subsystem power_supply or thermal. */
int uevent_matters(const char *message, size_t n);

#endif
