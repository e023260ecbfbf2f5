// Writes numbered lines at a steady rate and stamps each with the monotonic clock, so that a reader sees lost or
// doubled lines and the writer's own stalls.
//   writer LINES_PER_SECOND [SECONDS]
// Line: "<sequence from 0> <nanoseconds of CLOCK_MONOTONIC>". One batch a millisecond; without SECONDS for ever.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static long long now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int write_all(const char *bytes, size_t length) {
  while (length > 0) {
    ssize_t wrote = write(1, bytes, length);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) return -1;
    bytes += wrote;
    length -= wrote;
  }
  return 0;
}

int main(int argc, char **argv) {
  long long rate = argc > 1 ? atoll(argv[1]) : 10000;
  long long seconds = argc > 2 ? atoll(argv[2]) : -1;
  long long start = now(), sequence = 0;
  static char batch[1 << 16];
  for (long long tick = 0; seconds < 0 || tick < seconds * 1000; tick++) {
    long long due = (tick + 1) * rate / 1000;
    size_t used = 0;
    for (; sequence < due && used < sizeof batch - 64; sequence++)
      used += snprintf(batch + used, sizeof batch - used, "%lld %lld\n", sequence, now());
    if (write_all(batch, used)) return 1;
    long long next = start + (tick + 1) * 1000000LL;
    struct timespec wake = {.tv_sec = next / 1000000000LL, .tv_nsec = next % 1000000000LL};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &wake, NULL) == EINTR) {
    }
  }
  return 0;
}
