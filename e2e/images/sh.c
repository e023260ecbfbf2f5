// The shell of the test images: busybox's, except that `sh -c WORD` looks WORD up in PATH. Busybox's own shell would
// run its built-in applet, whatever is mounted over the applet's file.
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int is_plain_word(const char *text) {
  if (!*text) return 0;
  for (; *text; text++)
    if (!isalnum((unsigned char)*text) && !strchr("_-./", *text)) return 0;
  return 1;
}

// Words that only a shell can carry out.
static int is_builtin(const char *word) {
  static const char *const builtins[] = {":",    ".",    "cd",   "eval",  "exec",  "exit", "export", "jobs",
                                         "pwd",  "read", "set",  "shift", "times", "trap", "type",   "ulimit",
                                         "umask", "unset", "wait"};
  for (size_t i = 0; i < sizeof builtins / sizeof *builtins; i++)
    if (strcmp(word, builtins[i]) == 0) return 1;
  return 0;
}

int main(int argc, char **argv) {
  if (argc == 3 && strcmp(argv[1], "-c") == 0 && is_plain_word(argv[2]) && !is_builtin(argv[2])) {
    char *words[] = {argv[2], NULL};
    execvp(words[0], words);
    fprintf(stderr, "%s: %s: %s\n", argv[0], argv[2], errno == ENOENT ? "not found" : strerror(errno));
    return errno == ENOENT ? 127 : 126;
  }
  argv[0] = "sh";
  execv("/bin/busybox", argv);
  perror("/bin/busybox");
  return 127;
}
