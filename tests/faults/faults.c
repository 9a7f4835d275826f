/* Preloaded into a process: counts its calls that change files under a folder, and at the n-th lets something happen.
 *
 *   fault_arm(folder, n, mode, report)   from now on; `report` is a descriptor that gets "name path\n" of the
 *                                        n-th, or, if the disk is full from the n-th on, of the first that is refused
 *   fault_count()                        calls so far
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, KILL_BEFORE, KILL_HALFWAY, FULL, HICCUP, COUNT };
enum { GO_ON, FAIL, HALF };

static char folder[PATH_MAX];
static long wanted, calls;
static int mode = OFF, report = -1, refused;

void fault_arm(const char *path, long n, int what, int descriptor) {
  snprintf(folder, sizeof folder, "%s/", path);
  wanted = n, calls = 0, refused = 0, report = descriptor, mode = what;
}

long fault_count(void) { return __atomic_load_n(&calls, __ATOMIC_SEQ_CST); }

static void die(void) {
  syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
  for (;;) pause();
}

static void say(const char *name, const char *path) {
  char line[PATH_MAX + 64];
  int length = snprintf(line, sizeof line, "%s %s\n", name, path);
  syscall(SYS_write, report, line, (size_t)length);
}

static const char *path_of(int descriptor, char *path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, PATH_MAX - 1);
  path[length < 0 ? 0 : length] = 0;
  return path;
}

static const char *path_at(int base, const char *name, char *path) {
  if (name[0] == '/' || base == AT_FDCWD) return name;
  path_of(base, path);
  size_t length = strlen(path);
  snprintf(path + length, PATH_MAX - length, "/%s", name);
  return path;
}

/* Count a call; `grows`: it needs room on the disk; `divisible`: half of it can be done. */
static int before(const char *name, const char *path, int grows, int divisible) {
  if (mode == OFF || strncmp(path, folder, strlen(folder)) != 0) return GO_ON;
  long number = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
  if (mode == FULL) {
    if (number < wanted || !grows) return GO_ON;
    int is_first = !__atomic_exchange_n(&refused, 1, __ATOMIC_SEQ_CST);
    if (is_first) say(name, path);
    errno = ENOSPC;
    return is_first && divisible ? HALF : FAIL;
  }
  if (number != wanted) return GO_ON;
  say(name, path);
  if (mode == KILL_BEFORE) die();
  if (mode == KILL_HALFWAY) return HALF;
  if (mode == HICCUP) {
    errno = EIO;
    return FAIL;
  }
  return GO_ON;
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

/* A call that cannot be done by halves is done before the kill. */
#define WHOLE(name, path, grows, call)                 \
  do {                                                 \
    REAL(name);                                        \
    int fate = before(#name, path, grows, 0);          \
    if (fate == FAIL) return -1;                       \
    __typeof__(call) result = call;                    \
    if (fate == HALF) die();                           \
    return result;                                     \
  } while (0)

#define DATA(name, descriptor, size, whole, half)                          \
  do {                                                                     \
    REAL(name);                                                            \
    char path[PATH_MAX];                                                   \
    if (mode == OFF) return whole;                                         \
    int fate = before(#name, path_of(descriptor, path), 1, (size) > 1);    \
    if (fate == FAIL) return -1;                                           \
    if (fate == GO_ON) return whole;                                       \
    ssize_t done = half;                                                   \
    if (mode == KILL_HALFWAY) die();                                       \
    return done;                                                           \
  } while (0)

ssize_t write(int fd, const void *data, size_t size) {
  DATA(write, fd, size, real(fd, data, size), real(fd, data, size / 2));
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
  DATA(pwrite, fd, size, real(fd, data, size, at), real(fd, data, size / 2, at));
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
  DATA(pwrite64, fd, size, real(fd, data, size, at), real(fd, data, size / 2, at));
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
  DATA(writev, fd, 2, real(fd, parts, count), real(fd, parts, 1));
}
ssize_t sendfile(int out, int in, off_t *at, size_t size);
ssize_t sendfile(int out, int in, off_t *at, size_t size) {
  DATA(sendfile, out, size, real(out, in, at, size), real(out, in, at, size / 2));
}

static int opens(const char *name, int (*real)(const char *, int, ...), const char *path, int flags, mode_t rights) {
  if (!(flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))) return real(path, flags, rights);
  int fate = before(name, path, flags & O_CREAT && access(path, F_OK) != 0, 0);
  if (fate == FAIL) return -1;
  int descriptor = real(path, flags, rights);
  if (fate == HALF) die();
  return descriptor;
}
static mode_t rights_of(int flags, va_list rest) { return flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; }

#define OPEN(name)                                       \
  int name(const char *path, int flags, ...) {           \
    va_list rest;                                        \
    va_start(rest, flags);                               \
    mode_t rights = rights_of(flags, rest);              \
    va_end(rest);                                        \
    REAL(name);                                          \
    return opens(#name, real, path, flags, rights);      \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                                   \
  int name(int base, const char *path, int flags, ...) {                                               \
    va_list rest;                                                                                      \
    va_start(rest, flags);                                                                             \
    mode_t rights = rights_of(flags, rest);                                                            \
    va_end(rest);                                                                                      \
    char whole[PATH_MAX];                                                                              \
    const char *target = path_at(base, path, whole);                                                   \
    if (!(flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))) {                                          \
      REAL(name);                                                                                      \
      return real(base, path, flags, rights);                                                          \
    }                                                                                                  \
    WHOLE(name, target, flags & O_CREAT && access(target, F_OK) != 0, real(base, path, flags, rights)); \
  }
OPENAT(openat)
OPENAT(openat64)

int fsync(int fd) {
  char path[PATH_MAX];
  WHOLE(fsync, path_of(fd, path), 0, real(fd));
}
int fdatasync(int fd) {
  char path[PATH_MAX];
  WHOLE(fdatasync, path_of(fd, path), 0, real(fd));
}
int ftruncate(int fd, off_t size) {
  char path[PATH_MAX];
  WHOLE(ftruncate, path_of(fd, path), size > 0, real(fd, size));
}
int ftruncate64(int fd, off64_t size) {
  char path[PATH_MAX];
  WHOLE(ftruncate64, path_of(fd, path), size > 0, real(fd, size));
}
int rename(const char *from, const char *to) { WHOLE(rename, to, 0, real(from, to)); }
int renameat(int a, const char *from, int b, const char *to) {
  char path[PATH_MAX];
  WHOLE(renameat, path_at(b, to, path), 0, real(a, from, b, to));
}
int link(const char *from, const char *to) { WHOLE(link, to, 1, real(from, to)); }
int linkat(int a, const char *from, int b, const char *to, int flags) {
  char path[PATH_MAX];
  WHOLE(linkat, path_at(b, to, path), 1, real(a, from, b, to, flags));
}
int unlink(const char *path) { WHOLE(unlink, path, 0, real(path)); }
int unlinkat(int base, const char *name, int flags) {
  char path[PATH_MAX];
  WHOLE(unlinkat, path_at(base, name, path), 0, real(base, name, flags));
}
int mkdir(const char *path, mode_t rights) { WHOLE(mkdir, path, access(path, F_OK) != 0, real(path, rights)); }
int mkdirat(int base, const char *name, mode_t rights) {
  char path[PATH_MAX];
  const char *target = path_at(base, name, path);
  WHOLE(mkdirat, target, access(target, F_OK) != 0, real(base, name, rights));
}
int rmdir(const char *path) { WHOLE(rmdir, path, 0, real(path)); }
