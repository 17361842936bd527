/* Named fault points: where a test may kill the process or make a call fail.
 *
 * ATTUNE_FAULT="publish.rename.before:kill" sends SIGKILL there; ":fail" makes
 * fault_fails() true (errno EIO); ":N:kill" picks the N-th pass, from 1. ATTUNE_FAULT_LIST=FILE
 * appends each point's name passed to FILE. Compiled in with the option ATTUNE_TESTING only. */
#ifndef CORE_BASE_FAULT_H
#define CORE_BASE_FAULT_H

#ifdef ATTUNE_TESTING
/* Non-zero: the call at this point should be reported as failed; errno is set. */
int fault_fails(const char *name);
#else
#define fault_fails(name) ((void)(name), 0)
#endif
#define fault_point(name) ((void)fault_fails(name))

#endif
