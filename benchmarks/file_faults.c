// Preloaded by file_faults.py: the n-th operation on files below a folder kills the process, by SIGKILL and at
// that very call, or finds the disk full. Operations that change no file do not count.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, KILL, TEAR, FULL };  // before any operation, in the middle of a write, from a growing one on
enum { OTHER, GROWS, WRITES };   // what an operation does to the disk
enum { GO_ON, FAIL, HALF };      // what becomes of it
static char folder[PATH_MAX];
static size_t length;
static int mode;
static long moment, seen;

void faults_arm(const char *below, int how, long at) {
  length = strlen(strncpy(folder, below, sizeof folder - 1));
  moment = at;
  seen = 0;
  mode = how;
}

long faults_seen(void) { return seen; }

static void die(void) {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

static int counts(int kind) { return mode == KILL || kind == WRITES || (mode == FULL && kind == GROWS); }

static int happens(int kind) {
  if (!counts(kind)) return GO_ON;
  long now = __atomic_fetch_add(&seen, 1, __ATOMIC_SEQ_CST);
  if (now < moment) return GO_ON;
  if (mode == FULL) return now == moment && kind == WRITES ? HALF : FAIL;
  if (now > moment) return GO_ON;
  if (mode == KILL) die();
  return HALF;
}

static int inside(const char *path) { return !strncmp(path, folder, length); }

static int of_path(int base, const char *path, int kind) {
  char link[64], there[PATH_MAX];
  if (mode == OFF || path == NULL) return GO_ON;
  if (path[0] == '/') return inside(path) ? happens(kind) : GO_ON;
  snprintf(link, sizeof link, base == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", base);
  ssize_t size = readlink(link, there, sizeof there - 1);
  if (size < 0) return GO_ON;
  there[size] = 0;
  return inside(there) ? happens(kind) : GO_ON;
}

static int of_file(int file, int kind) { return mode == OFF ? GO_ON : of_path(file, "", kind); }

static int full(void) {
  errno = ENOSPC;
  return -1;
}

ssize_t write(int file, const void *bytes, size_t count) {
  int what = of_file(file, WRITES);
  if (what == FAIL) return full();
  ssize_t done = syscall(SYS_write, file, bytes, what == HALF ? count / 2 : count);
  if (what == HALF && mode == TEAR) die();
  return what == HALF && done == 0 ? full() : done;
}

ssize_t pwrite(int file, const void *bytes, size_t count, off_t at) {
  int what = of_file(file, WRITES);
  if (what == FAIL) return full();
  ssize_t done = syscall(SYS_pwrite64, file, bytes, what == HALF ? count / 2 : count, at);
  if (what == HALF && mode == TEAR) die();
  return what == HALF && done == 0 ? full() : done;
}
ssize_t pwrite64(int, const void *, size_t, off_t) __attribute__((alias("pwrite")));

ssize_t writev(int file, const struct iovec *parts, int count) {
  int what = of_file(file, WRITES);
  if (what == FAIL) return full();
  ssize_t done = syscall(SYS_writev, file, parts, what == HALF ? (count + 1) / 2 : count);
  if (what == HALF && mode == TEAR) die();
  return done;
}

ssize_t sendfile(int to, int from, off_t *at, size_t count) {
  int what = of_file(to, WRITES);
  if (what == FAIL) return full();
  ssize_t done = syscall(SYS_sendfile, to, from, at, what == HALF ? count / 2 : count);
  if (what == HALF && mode == TEAR) die();
  return done;
}
ssize_t sendfile64(int, int, off_t *, size_t) __attribute__((alias("sendfile")));

ssize_t copy_file_range(int from, off64_t *in, int to, off64_t *out, size_t count, unsigned flags) {
  int what = of_file(to, WRITES);
  if (what == FAIL) return full();
  ssize_t done = syscall(SYS_copy_file_range, from, in, to, out, what == HALF ? count / 2 : count, flags);
  if (what == HALF && mode == TEAR) die();
  return done;
}

int openat(int base, const char *path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  unsigned rights = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, unsigned) : 0;
  va_end(rest);
  if (flags & (O_CREAT | O_TRUNC) && of_path(base, path, flags & O_CREAT ? GROWS : OTHER) == FAIL) return full();
  return syscall(SYS_openat, base, path, flags, rights);
}
int openat64(int, const char *, int, ...) __attribute__((alias("openat")));

int open(const char *path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  unsigned rights = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, unsigned) : 0;
  va_end(rest);
  return openat(AT_FDCWD, path, flags, rights);
}
int open64(const char *, int, ...) __attribute__((alias("open")));

int mkdirat(int base, const char *path, mode_t rights) {
  return of_path(base, path, GROWS) == FAIL ? full() : (int)syscall(SYS_mkdirat, base, path, rights);
}
int mkdir(const char *path, mode_t rights) { return mkdirat(AT_FDCWD, path, rights); }

int fsync(int file) { return of_file(file, GROWS) == FAIL ? full() : (int)syscall(SYS_fsync, file); }

int ftruncate(int file, off_t size) {
  return of_file(file, GROWS) == FAIL ? full() : (int)syscall(SYS_ftruncate, file, size);
}
int ftruncate64(int, off_t) __attribute__((alias("ftruncate")));

int unlinkat(int base, const char *path, int flags) {
  of_path(base, path, OTHER);
  return syscall(SYS_unlinkat, base, path, flags);
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int renameat(int from, const char *old, int to, const char *new) {
  of_path(to, new, OTHER);
  return syscall(SYS_renameat2, from, old, to, new, 0);
}
int rename(const char *old, const char *new) { return renameat(AT_FDCWD, old, AT_FDCWD, new); }
