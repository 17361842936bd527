/* attune COMMAND [arguments]: finds the command and runs it. */
#include "cli/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

static const struct command *const commands[] = {
    &init_command,   &record_command,  &import_command,   &status_command,   &history_command,
    &consent_command, &forget_command, &export_command,   &train_command,    &eval_command,
    &generate_command, &chat_command,  &adapters_command, &backup_command,   &restore_command,
    &nightly_command, &service_command, &tokenize_command, &bench_command,  &doctor_command,
    &report_command, &learned_command, &catalog_command,
};
enum { N_COMMANDS = sizeof commands / sizeof commands[0] };

static void print_help(FILE *stream) {
    fputs("usage: attune COMMAND [arguments]\n\n"
          "A language model on your own device becomes yours: it learns from what you recorded, and nothing leaves\n"
          "the device.\n\n"
          "commands:\n",
          stream);
    for (size_t i = 0; i < N_COMMANDS; i++) fprintf(stream, "  %-10s %s\n", commands[i]->name, commands[i]->summary);
    fputs("\n"
          "`attune help COMMAND` tells its options; `attune --version` the version.\n"
          "The home is --home DIR, else $ATTUNE_HOME, else the folder attune in the XDG data directory.\n"
          "Exit codes: 0 done, 1 refused or failed, 2 usage, 3 not finished or not eligible now (call again).\n",
          stream);
}

static const struct command *find(const char *name) {
    for (size_t i = 0; i < N_COMMANDS; i++)
        if (strcmp(commands[i]->name, name) == 0) return commands[i];
    return NULL;
}

static int unknown(const char *name) {
    const char *names[N_COMMANDS + 1];
    for (size_t i = 0; i < N_COMMANDS; i++) names[i] = commands[i]->name;
    names[N_COMMANDS] = "help";
    if (name[0] == '-') return cli_usage(NULL, "options come after the command, and there is none before %s", name);
    const char *near = cli_nearest(name, names, N_COMMANDS + 1);
    if (near) return cli_usage(NULL, "there is no command \"%s\"; did you mean \"%s\"?", name, near);
    return cli_usage(NULL, "there is no command \"%s\"", name);
}

static int help(int argc, char **argv) {
    static char help_option[] = "--help";
    if (argc == 0) {
        print_help(stdout);
        return CLI_DONE;
    }
    if (argc > 1) return cli_usage(NULL, "help takes one command");
    const struct command *command = find(argv[0]);
    if (!command) return unknown(argv[0]);
    struct cli cli = {0};
    return command->run(&cli, 1, (char *[]){help_option, NULL});
}

static int dispatch(int argc, char **argv) {
    if (argc < 2) {
        print_help(stderr);
        return CLI_USAGE;
    }
    const char *name = argv[1];
    if (strcmp(name, "--version") == 0) {
        cli_print("attune %s\n", attune_version());
        return CLI_DONE;
    }
    if (strcmp(name, "help") == 0) return help(argc - 2, argv + 2);
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) return help(0, NULL);
    const struct command *command = find(name);
    if (!command) return unknown(name);
    struct cli cli = {0};
    return command->run(&cli, argc - 2, argv + 2);
}

/* A standard stream that was closed by whoever started us would be the number of the next file opened, and
 * messages would go into it. What is put in its place refuses to be used, so that the loss is noticed. */
static void hold_standard_streams(void) {
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF && open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY) != fd)
            _exit(CLI_FAILED);
}

int main(int argc, char **argv) {
    hold_standard_streams();
    signal(SIGPIPE, SIG_IGN); /* a reader that went away is a failed write, told by the exit code */
    int code = dispatch(argc, argv);
    bool failed = fflush(stdout) != 0 || ferror(stdout);
    int reason = errno;
    failed |= fclose(stdout) != 0;
    if (!failed) return code;
    cli_fail_text("cannot write to standard output: %s", strerror(reason));
    return CLI_FAILED;
}
