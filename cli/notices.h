/* Notices to systemd: a service of Type=notify tells that it is ready, what it does, and that it is alive. Nothing
 * happens where nobody listens, or in a build without libsystemd. */
#ifndef CLI_NOTICES_H
#define CLI_NOTICES_H

/* What the watchdog is fed with, and how often; zeroed: nothing was sent yet. */
struct notices {
    double alive_every; /* seconds; 0: no watchdog */
    double alive_at;    /* monotonic seconds of the last */
    char status[128];   /* the last that was sent */
};
void notices_open(struct notices *notices);
void notices_ready(void);
void notices_stopping(void);
/* That work goes on. Cheap: sends what is due. */
void notices_alive(struct notices *notices);
void notices_status(struct notices *notices, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
