#define _GNU_SOURCE
#include "energy/uevents.h"

#include <errno.h>
#include <linux/netlink.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Group 1 is the kernel's own; udev sends its copies to group 2. */
enum { KERNEL_GROUP = 1, MESSAGE_MAX = 8192, TAKEN_MAX = 1024 };

int uevents_open(void) {
    int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT);
    struct sockaddr_nl address = {.nl_family = AF_NETLINK, .nl_groups = KERNEL_GROUP};
    if (fd < 0) return -1;
    if (bind(fd, (const struct sockaddr *)&address, sizeof address) == 0) return fd;
    close(fd);
    return -1;
}

int uevent_matters(const char *message, size_t n) {
    static const char subsystem[] = "SUBSYSTEM=";
    const char *end = message + n, *at = memchr(message, 0, n);
    if (!at || !memchr(message, '@', (size_t)(at - message))) return 0;
    for (const char *field = at + 1, *next; field < end; field = next + 1) {
        next = memchr(field, 0, (size_t)(end - field));
        if (!next) return 0; /* cut off */
        if (strncmp(field, subsystem, sizeof subsystem - 1) != 0) continue;
        field += sizeof subsystem - 1;
        return !strcmp(field, "power_supply") || !strcmp(field, "thermal");
    }
    return 0;
}

int uevents_take(int fd) {
    char message[MESSAGE_MAX];
    int matters = 0;
    for (int taken = 0; taken < TAKEN_MAX; taken++) {
        struct sockaddr_nl from = {0};
        struct iovec into = {message, sizeof message};
        struct msghdr header = {.msg_name = &from, .msg_namelen = sizeof from, .msg_iov = &into, .msg_iovlen = 1};
        ssize_t n = recvmsg(fd, &header, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return matters || errno == ENOBUFS;
        /* Whoever may open such a socket may write to it: the kernel alone has the port 0. */
        if (header.msg_namelen != sizeof from || from.nl_pid != 0 || from.nl_groups != KERNEL_GROUP) continue;
        if (header.msg_flags & MSG_TRUNC || uevent_matters(message, (size_t)n)) matters = 1;
    }
    return matters;
}
