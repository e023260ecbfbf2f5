// Prints the effective user id; installed set-uid root to show whether that bit is honoured.
#include <stdio.h>
#include <unistd.h>

int main(void) {
  printf("Effective uid: %d\n", geteuid());
  return 0;
}
