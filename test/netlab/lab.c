/* SPDX-License-Identifier: Apache-2.0 */
/* Moving into a host of netlab.py: see lab.h. */
#include "netlab/lab.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <unistd.h>

#define INTERFACE "isgq0" /* as in netlab.py */

static const char *hosts(void)
{
    const char *text = getenv("NETLAB_HOSTS");
    return text != NULL ? text : "";
}

int iq_lab_hosts(void)
{
    int count = hosts()[0] != '\0';
    for (const char *at = hosts(); *at != '\0'; at++)
        count += *at == ',';
    return count;
}

const char *iq_lab_address(void)
{
    const char *address = iq_lab_hosts() > 0 ? getenv("NETLAB_ADDRESS") : NULL;
    return address != NULL ? address : "127.0.0.1";
}

static void require(bool condition, const char *what, const char *host)
{
    if (condition)
        return;
    fprintf(stderr, "lab: cannot %s of host %s: %s\n", what, host, strerror(errno));
    abort();
}

/* /sys shows the interfaces of the namespace in which it was mounted, and UCX looks for its devices there. */
static void see_the_interfaces(const char *host)
{
    require(unshare(CLONE_NEWNS) == 0 && mount("", "/", NULL, MS_SLAVE | MS_REC, NULL) == 0, "leave the mounts", host);
    umount2("/sys", MNT_DETACH);
    require(mount(host, "/sys", "sysfs", 0, NULL) == 0, "mount the /sys", host);
}

void iq_lab_enter(int host)
{
    const char *name = hosts();
    char text[64], path[128];
    while (host-- > 0)
        name = strchr(name, ',') + 1;
    snprintf(text, sizeof(text), "%.*s", (int)strcspn(name, ","), name);
    snprintf(path, sizeof(path), "/var/run/netns/%s", text);
    int namespace = open(path, O_RDONLY | O_CLOEXEC);
    require(namespace >= 0 && setns(namespace, CLONE_NEWNET) == 0, "enter the network", text);
    close(namespace);
    see_the_interfaces(text);
    unsetenv("ISGQ_HOSTID"); /* the library has to find out by itself */
    setenv("ISGQ_INTERFACE", INTERFACE, 1);
}

int iq_lab_port(void)
{
    for (int port = 20000 + (int)getpid() % 10000; port < 32000; port++) {
        struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        bool is_free = bind(fd, (struct sockaddr *)&at, sizeof(at)) == 0;
        close(fd);
        if (is_free)
            return port;
    }
    fprintf(stderr, "no free port below 32000\n");
    abort();
}

bool iq_lab_skips(const char *name, const char *why)
{
    if (iq_lab_hosts() > 0)
        printf("skipped between hosts: %s: %s\n", name, why);
    return iq_lab_hosts() > 0;
}

const char *iq_lab_algorithm(const char *algorithm, int nranks)
{
    int hosts = iq_lab_hosts();
    if (algorithm == NULL || hosts == 0 || nranks == 1)
        return algorithm;
    if (strcmp(algorithm, "board") == 0 && hosts > 1)
        return "direct";
    if (strcmp(algorithm, "share") == 0 && nranks > hosts && nranks % hosts != 0)
        return "gather";
    return algorithm;
}
