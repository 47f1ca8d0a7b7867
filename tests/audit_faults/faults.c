/* Preloaded, it makes a program see a failing disk, or a clock that was set back. Before each call it reads a file,
 * named by RINGFENCE_FAULTS, with a line for each fault: "write ERRNO", "sync ERRNO", "slow MILLISECONDS",
 * "back SECONDS". Only files of an audit log are harmed. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long fault(const char *kind) {
  const char *path = getenv("RINGFENCE_FAULTS");
  char text[256];
  if (!path) return 0;
  int file = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
  if (file < 0) return 0;
  ssize_t length = syscall(SYS_read, file, text, sizeof text - 1);
  syscall(SYS_close, file);
  if (length <= 0) return 0;
  text[length] = 0;
  const char *found = strstr(text, kind);
  return found ? atol(found + strlen(kind)) : 0;
}

static int is_log(int file) {
  char link[64], path[512];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length <= 0) return 0;
  path[length] = 0;
  return strstr(path, "/audit-") && strstr(path, ".jsonl");
}

static int harmed(int file, const char *kind) {
  int saved = errno;
  long error = is_log(file) ? fault(kind) : 0;
  errno = error ? (int)error : saved;
  return error != 0;
}

ssize_t write(int file, const void *bytes, size_t length) {
  return harmed(file, "write ") ? -1 : syscall(SYS_write, file, bytes, length);
}

int ftruncate64(int file, off64_t length) {
  return harmed(file, "write ") ? -1 : (int)syscall(SYS_ftruncate, file, length);
}

int fdatasync(int file) {
  if (is_log(file)) {
    long slow = fault("slow ");
    struct timespec time = {slow / 1000, slow % 1000 * 1000000};
    nanosleep(&time, 0);
  }
  return harmed(file, "sync ") ? -1 : (int)syscall(SYS_fdatasync, file);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
  int result = (int)syscall(SYS_clock_gettime, clock, time);
  if (clock == CLOCK_REALTIME) time->tv_sec -= fault("back ");
  return result;
}
