// Lists the System V shared memory segments of its IPC namespace, one per line: key, id, bytes.
#include <stdio.h>

int main(void) {
  FILE *table = fopen("/proc/sysvipc/shm", "r");
  char line[512];
  if (!table || !fgets(line, sizeof line, table)) {
    perror("/proc/sysvipc/shm");
    return 1;
  }
  puts("key        shmid      bytes");
  while (fgets(line, sizeof line, table)) {
    int key, id;
    unsigned mode;
    unsigned long bytes;
    if (sscanf(line, "%d %d %o %lu", &key, &id, &mode, &bytes) == 4) printf("0x%08x %-10d %lu\n", key, id, bytes);
  }
  return 0;
}
