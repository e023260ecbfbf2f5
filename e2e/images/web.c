// A web server for tests: one thread, one page, any request. It carries the process title that conformance
// specs look for. Compile-time settings: PORT, TITLE (argv[0] of the server), NAME (its comm), EXE (its path in
// the image), BANNER (optional first line on stdout).
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static const char page[] = "<h1>It serves.</h1>\n";

// Listens on both families where there is IPv6, else on IPv4 alone.
static int listen_any(void) {
  int one = 1, zero = 0;
  int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd >= 0) {
    struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons(PORT)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
    if (bind(fd, (struct sockaddr *)&any, sizeof any) == 0 && listen(fd, 64) == 0) return fd;
    close(fd);
  }
  struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(PORT)};
  fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (fd < 0 || bind(fd, (struct sockaddr *)&any, sizeof any) || listen(fd, 64)) return -1;
  return fd;
}

// Reads up to the blank line that ends a request's head; a silent client is dropped after 5 s.
static void answer(int client) {
  struct timeval patience = {.tv_sec = 5};
  setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  char head[4096];
  size_t used = 0;
  while (used < sizeof head - 1) {
    ssize_t got = read(client, head + used, sizeof head - 1 - used);
    if (got <= 0) return;
    used += got;
    head[used] = 0;
    if (strstr(head, "\r\n\r\n")) break;
  }
  dprintf(client, "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n%s",
          sizeof page - 1, page);
  shutdown(client, SHUT_WR);
  while (read(client, head, sizeof head) > 0) {
  }
}

int main(int argc, char **argv) {
  (void)argc;
  if (strcmp(argv[0], TITLE) != 0) {
    char *again[] = {TITLE, NULL};
    execv(EXE, again);
    perror("exec " EXE);
    return 1;
  }
  prctl(PR_SET_NAME, NAME);
  signal(SIGPIPE, SIG_IGN);
  FILE *pid = fopen("/var/run/" NAME ".pid", "w");
  if (pid) {
    fprintf(pid, "%d\n", getpid());
    fclose(pid);
  }
  int fd = listen_any();
  if (fd < 0) {
    perror("listen");
    return 1;
  }
#ifdef BANNER
  puts(BANNER);
  fflush(stdout);
#endif
  for (;;) {
    int client = accept(fd, NULL, NULL);
    if (client < 0) continue;
    answer(client);
    close(client);
  }
}
