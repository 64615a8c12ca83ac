/* Faults at the border between a program and the kernel, for tests/chaos only (LD_PRELOAD).

   Every call that changes something below one folder is a numbered step. At step `at` the program
   is killed with SIGKILL, a write half done; or the disk is full from that step on: the write at
   that step comes out short, and every later call that needs space fails with ENOSPC.
   Apart from that the wall clock can be shifted by whole seconds (monotonic clocks stay).

   arm_faults(folder, kind, at)   kind: 0 count only, 1 kill, 2 full; steps start at 0
   disarm_faults()                the disk has space again; the number of steps that were seen
   step_label(n)                  what step n was, such as "write metrics.json"
   SHIFT_CLOCK=SECONDS            in the environment at the start of the process                     */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

enum { COUNT, KILL, FULL };
enum { GO_ON, HALF_THEN_KILL, HALF, NO_SPACE };

#define LONGEST 4096
#define MOST_LABELS 4096

static char folder[LONGEST];
static size_t folder_length;
static int kind, armed;
static long at, seen;
static char labels[MOST_LABELS][80];

/* The next definition of a function of the C library, looked up once. */
#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static void die(void) { kill(getpid(), SIGKILL); for (;;) pause(); }

static int below(const char *path) {
    return armed && path && !strncmp(path, folder, folder_length)
        && (path[folder_length] == '/' || path[folder_length] == 0);
}

static int path_of(int descriptor, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, LONGEST - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return below(path);
}

/* What is to become of this step; `needs_space` is 0 for calls that a full disk lets through. */
static int step(const char *call, const char *path, int needs_space) {
    long number = seen++;
    if (number < MOST_LABELS) {
        const char *name = strrchr(path, '/');
        snprintf(labels[number], sizeof labels[number], "%s %.60s", call, name ? name + 1 : path);
    }
    if (kind == KILL && number == at) return HALF_THEN_KILL;
    if (kind == FULL && needs_space && number == at) return HALF;
    if (kind == FULL && needs_space && number > at) return NO_SPACE;
    return GO_ON;
}

void arm_faults(const char *where, int what, long number) {
    folder_length = strlen(where);
    memcpy(folder, where, folder_length + 1);
    kind = what; at = number; seen = 0; armed = 1;
}

long disarm_faults(void) { armed = 0; return seen; }

const char *step_label(long number) {
    return number >= 0 && number < seen && number < MOST_LABELS ? labels[number] : "";
}

#define WRITE(name, call, ...) \
    char path[LONGEST]; \
    REAL(name); \
    if (armed && path_of(descriptor, path)) { \
        int fate = step("write", path, 1); \
        if (fate == NO_SPACE || (fate == HALF && count < 2)) { errno = ENOSPC; return -1; } \
        if (fate != GO_ON) { \
            size_t whole = count; \
            count = whole / 2; \
            ssize_t written = call; \
            if (fate == HALF_THEN_KILL) die(); \
            return written; \
        } \
    } \
    return call

ssize_t write(int descriptor, const void *data, size_t count) {
    WRITE(write, real(descriptor, data, count));
}
ssize_t pwrite(int descriptor, const void *data, size_t count, off_t offset) {
    WRITE(pwrite, real(descriptor, data, count, offset));
}
ssize_t pwrite64(int descriptor, const void *data, size_t count, off64_t offset) {
    WRITE(pwrite64, real(descriptor, data, count, offset));
}

#define BY_DESCRIPTOR(name, word, space, call) \
    char path[LONGEST]; \
    REAL(name); \
    if (armed && path_of(descriptor, path)) { \
        int fate = step(word, path, space); \
        if (fate == HALF_THEN_KILL) die(); \
        if (fate != GO_ON) { errno = ENOSPC; return -1; } \
    } \
    return call

int fsync(int descriptor) { BY_DESCRIPTOR(fsync, "fsync", 1, real(descriptor)); }
int fdatasync(int descriptor) { BY_DESCRIPTOR(fdatasync, "fsync", 1, real(descriptor)); }
int ftruncate(int descriptor, off_t length) { BY_DESCRIPTOR(ftruncate, "truncate", 1, real(descriptor, length)); }
int ftruncate64(int descriptor, off64_t length) { BY_DESCRIPTOR(ftruncate64, "truncate", 1, real(descriptor, length)); }

#define BY_PATH(name, word, where, space, call) \
    REAL(name); \
    if (below(where)) { \
        int fate = step(word, where, space); \
        if (fate == HALF_THEN_KILL) die(); \
        if (fate != GO_ON) { errno = ENOSPC; return -1; } \
    } \
    return call

int rename(const char *from, const char *to) { BY_PATH(rename, "rename", to, 1, real(from, to)); }
int link(const char *from, const char *to) { BY_PATH(link, "link", to, 1, real(from, to)); }
int mkdir(const char *path, mode_t mode) { BY_PATH(mkdir, "mkdir", path, 1, real(path, mode)); }
int unlink(const char *path) { BY_PATH(unlink, "unlink", path, 0, real(path)); }
int rmdir(const char *path) { BY_PATH(rmdir, "rmdir", path, 0, real(path)); }
int truncate(const char *path, off_t length) { BY_PATH(truncate, "truncate", path, 0, real(path, length)); }
int truncate64(const char *path, off64_t length) { BY_PATH(truncate64, "truncate", path, 0, real(path, length)); }

/* Opening is a step where it makes a new file. */
#define OPEN(name, directory, call) \
    mode_t mode = 0; \
    REAL(name); \
    if (flags & (O_CREAT | O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
        if (below(path) && access(path, F_OK)) { \
            int fate = step("create", path, 1); \
            if (fate == HALF_THEN_KILL) die(); \
            if (fate != GO_ON) { errno = ENOSPC; return -1; } \
        } \
    } \
    return call

int open(const char *path, int flags, ...) { OPEN(open, 0, real(path, flags, mode)); }
int open64(const char *path, int flags, ...) { OPEN(open64, 0, real(path, flags, mode)); }
int openat(int directory, const char *path, int flags, ...) { OPEN(openat, 0, real(directory, path, flags, mode)); }
int openat64(int directory, const char *path, int flags, ...) { OPEN(openat64, 0, real(directory, path, flags, mode)); }

static long shift(void) {
    static long seconds;
    static int known;
    if (!known) {
        const char *text = getenv("SHIFT_CLOCK");
        seconds = text ? atol(text) : 0;
        known = 1;
    }
    return seconds;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(clock_gettime);
    int outcome = real(clock, now);
    if (!outcome && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += shift();
    return outcome;
}

time_t time(time_t *stored) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (stored) *stored = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec fine;
    clock_gettime(CLOCK_REALTIME, &fine);
    now->tv_sec = fine.tv_sec;
    now->tv_usec = fine.tv_nsec / 1000;
    return 0;
}
