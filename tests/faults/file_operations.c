/* Watches every system call of this process that changes a file under one folder: counts it, writes it down, and at
   the n-th one kills the process or lets the call fail.

   The calls are caught by a seccomp filter and not by LD_PRELOAD, because not all of them go through libc: safetensors
   puts its file in place with a rename that Rust makes by itself, and libstdc++ writes to descriptors that fopen has
   opened inside of libc. The filter traps; the handler of SIGSYS makes the call in the process's stead, from the one
   address that the filter lets through.

   A process is asleep until it calls `arm`; a filter cannot be taken off again, so a process is armed once and for all.
   Watched calls are made and written down one at a time, so that the journal has the order in which they happened,
   whichever threads they come from. A mapping that is written to would not be seen; the toolkit and its libraries
   make none (strace shows no shared writable mapping of a file).

   The journal has a line for each call that was made:
       number  operation  file  size  folder  name  old-folder  old-name  replaced
   with inodes for file, folders and the replaced file, tabs between, and 0 or nothing where it does not apply. A file
   that loses its name, by unlink or under a rename, is kept as KEPT/number, so that a power cut can be played. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef __x86_64__
#error "the registers of a system call are known here for x86-64 alone"
#endif

enum action { COUNT, KILL, FAIL_ONCE, FAIL_FROM };

/* The place of a name: what it is in full, its folder, and what it stands for (0: nothing). */
struct place {
    char path[PATH_MAX];
    const char *name;
    ino_t folder, file;
    off_t size;
};

static char watched[PATH_MAX], kept[PATH_MAX];
static int journal = -1;
static long armed_at, counted;
static enum action action;
static int error_number;
static atomic_flag busy = ATOMIC_FLAG_INIT;

/* long gate(number, arguments...): makes a system call; the filter lets those pass whose next instruction is
   gate_open. Returns what the kernel does, a negated errno included. */
long gate(long number, long a, long b, long c, long d, long e, long f);
extern const char gate_open[];
__asm__(".text\n"
        ".globl gate, gate_open\n"
        "gate:\n"
        "    mov %rdi, %rax\n"
        "    mov %rsi, %rdi\n"
        "    mov %rdx, %rsi\n"
        "    mov %rcx, %rdx\n"
        "    mov %r8, %r10\n"
        "    mov %r9, %r8\n"
        "    mov 8(%rsp), %r9\n"
        "    syscall\n"
        "gate_open:\n"
        "    ret\n");

static int is_watched(const char *path) {
    size_t length = strlen(watched);
    return !strncmp(path, watched, length) && (path[length] == '/' || !path[length]);
}

static void split(struct place *place) {
    struct stat status;
    char *slash = strrchr(place->path, '/');
    place->folder = place->file = place->size = 0;
    place->name = "";
    if (!slash)
        return;
    place->name = slash + 1;
    *slash = 0;
    if (!stat(place->path, &status))
        place->folder = status.st_ino;
    *slash = '/';
    if (!lstat(place->path, &status)) {
        place->file = status.st_ino;
        place->size = status.st_size;
    }
}

/* Find the place of a path as openat and its kin take it; whether it is a watched one. */
static int locate(struct place *place, int folder, const char *path) {
    char base[PATH_MAX] = "", link[64];
    if (!path)
        return 0;
    if (path[0] == '/') {
        snprintf(place->path, PATH_MAX, "%s", path);
    } else {
        if (folder == AT_FDCWD) {
            if (!getcwd(base, sizeof base))
                return 0;
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
            ssize_t length = readlink(link, base, sizeof base - 1);
            base[length < 0 ? 0 : length] = 0;
        }
        if ((size_t)snprintf(place->path, PATH_MAX, "%s/%s", base, path) >= PATH_MAX)
            return 0;
    }
    if (!is_watched(place->path))
        return 0;
    split(place);
    return 1;
}

/* Find the place of an open file; its name may be one that it had before, its inode is right. */
static int locate_open(struct place *place, int descriptor) {
    char link[64];
    struct stat status;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, place->path, PATH_MAX - 1);
    if (length < 0)
        return 0;
    place->path[length] = 0;
    if (!is_watched(place->path) || fstat(descriptor, &status))
        return 0;
    split(place);
    place->file = status.st_ino;
    place->size = status.st_size;
    return 1;
}

static void note(const char *operation, const struct place *at, const struct place *from, ino_t replaced) {
    char line[2 * NAME_MAX + 256];
    int length = snprintf(line, sizeof line, "%ld\t%s\t%lu\t%ld\t%lu\t%s\t%lu\t%s\t%lu\n", counted, operation,
                          from ? from->file : at->file, at->size, at->folder, at->name, from ? from->folder : 0,
                          from ? from->name : "", replaced);
    gate(SYS_write, journal, (long)line, length, 0, 0, 0);
}

static void keep(const struct place *place) {
    char name[PATH_MAX + 32];
    snprintf(name, sizeof name, "%s/%ld", kept, counted);
    gate(SYS_linkat, AT_FDCWD, (long)place->path, AT_FDCWD, (long)name, 0, 0); /* a folder cannot be kept */
}

static int takes_space(const char *operation) {
    return strcmp(operation, "unlink") && strcmp(operation, "rmdir") && strcmp(operation, "chmod") &&
           strcmp(operation, "close");
}

/* Count a call; the error that it has to fail with, or 0. Does not return where the process is to be killed. */
static long begin(const char *operation, const struct place *at, const long *call) {
    counted++;
    if (action == COUNT || counted < armed_at || (counted > armed_at && action != FAIL_FROM))
        return 0;
    if (action == KILL) {
        long torn = 0;
        if (call[0] == SYS_write && call[3] > 1)
            torn = gate(SYS_write, call[1], call[2], call[3] / 2, 0, 0, 0);
        if (call[0] == SYS_writev && call[3] > 1)
            torn = gate(SYS_writev, call[1], call[2], call[3] / 2, 0, 0, 0);
        if (torn > 0)
            note("write", at, NULL, 0);
        kill(getpid(), SIGKILL);
        for (;;)
            pause();
    }
    if (action == FAIL_FROM && !takes_space(operation))
        return 0;
    char failed[32];
    snprintf(failed, sizeof failed, "failed %s", operation);
    note(failed, at, NULL, 0);
    return -error_number;
}

static long through(const long *call) {
    return gate(call[0], call[1], call[2], call[3], call[4], call[5], call[6]);
}

static long simple(const char *operation, const struct place *at, const long *call) {
    long result = begin(operation, at, call);
    if (result)
        return result;
    if ((result = through(call)) >= 0)
        note(operation, at, NULL, 0);
    return result;
}

static long closing(const struct place *at, const long *call) {
    long failure = begin("close", at, call);
    long result = through(call); /* a close that fails has closed all the same */
    if (!failure)
        note("close", at, NULL, 0);
    return failure ? failure : result;
}

static long opening(struct place *at, const long *call) {
    int flags = (int)call[3], is_new = !at->file;
    const char *operation = is_new             ? "create"
                            : flags & O_TRUNC  ? "empty"
                            : flags & O_APPEND ? "append"
                                               : "open";
    long result = begin(operation, at, call);
    if (result)
        return result;
    if ((result = through(call)) >= 0) {
        split(at); /* it has an inode now */
        note(operation, at, NULL, 0);
    }
    return result;
}

static long making(const char *operation, struct place *at, const long *call) {
    long result = begin(operation, at, call);
    if (result)
        return result;
    if ((result = through(call)) >= 0) {
        split(at);
        note(operation, at, NULL, 0);
    }
    return result;
}

static long removing(const struct place *at, const long *call) {
    const char *operation = call[3] & AT_REMOVEDIR ? "rmdir" : "unlink";
    long result = begin(operation, at, call);
    if (result)
        return result;
    keep(at);
    if ((result = through(call)) >= 0)
        note(operation, at, NULL, 0);
    return result;
}

static long renaming(const struct place *from, const struct place *to, const long *call) {
    long result = begin("rename", to, call);
    if (result)
        return result;
    if (to->file)
        keep(to);
    if ((result = through(call)) >= 0)
        note("rename", to, from, to->file);
    return result;
}

/* Say an old call in the words of its successor that takes a folder as well. */
static void modernize(long *call) {
    long a = call[1], b = call[2], c = call[3];
    switch (call[0]) {
#define AS(...) memcpy(call, (long[7]){__VA_ARGS__}, sizeof(long[7])); break
    case SYS_open: AS(SYS_openat, AT_FDCWD, a, b, c);
    case SYS_creat: AS(SYS_openat, AT_FDCWD, a, O_CREAT | O_WRONLY | O_TRUNC, b);
    case SYS_mkdir: AS(SYS_mkdirat, AT_FDCWD, a, b);
    case SYS_rmdir: AS(SYS_unlinkat, AT_FDCWD, a, AT_REMOVEDIR);
    case SYS_unlink: AS(SYS_unlinkat, AT_FDCWD, a, 0);
    case SYS_chmod: AS(SYS_fchmodat, AT_FDCWD, a, b);
    case SYS_link: AS(SYS_linkat, AT_FDCWD, a, AT_FDCWD, b, 0);
    case SYS_symlink: AS(SYS_symlinkat, a, AT_FDCWD, b);
    case SYS_rename: AS(SYS_renameat2, AT_FDCWD, a, AT_FDCWD, b, 0);
    case SYS_renameat: AS(SYS_renameat2, a, b, c, call[4], 0);
#undef AS
    }
}

static long watch(long *call) {
    struct place at, other;
    modernize(call);
    switch (call[0]) {
    case SYS_openat:
        if (((call[3] & O_ACCMODE) != O_RDONLY || call[3] & (O_CREAT | O_TRUNC)) &&
            locate(&at, (int)call[1], (char *)call[2]))
            return opening(&at, call);
        break;
    case SYS_write: case SYS_writev: case SYS_pwrite64: case SYS_pwritev: case SYS_ftruncate: case SYS_fallocate:
    case SYS_sendfile:
        if (locate_open(&at, (int)call[1]))
            return simple("write", &at, call);
        break;
    case SYS_copy_file_range:
        if (locate_open(&at, (int)call[3]))
            return simple("write", &at, call);
        break;
    case SYS_truncate:
        if (locate(&at, AT_FDCWD, (char *)call[1]))
            return simple("write", &at, call);
        break;
    case SYS_fsync: case SYS_fdatasync:
        if (locate_open(&at, (int)call[1]))
            return simple("fsync", &at, call);
        break;
    case SYS_close:
        if ((fcntl((int)call[1], F_GETFL) & O_ACCMODE) != O_RDONLY && locate_open(&at, (int)call[1]))
            return closing(&at, call);
        break;
    case SYS_fchmod:
        if (locate_open(&at, (int)call[1]))
            return simple("chmod", &at, call);
        break;
    case SYS_fchmodat:
        if (locate(&at, (int)call[1], (char *)call[2]))
            return simple("chmod", &at, call);
        break;
    case SYS_mkdirat:
        if (locate(&at, (int)call[1], (char *)call[2]))
            return making("mkdir", &at, call);
        break;
    case SYS_linkat:
        if (locate(&at, (int)call[3], (char *)call[4]))
            return making("link", &at, call);
        break;
    case SYS_symlinkat:
        if (locate(&at, (int)call[2], (char *)call[3]))
            return making("link", &at, call);
        break;
    case SYS_unlinkat:
        if (locate(&at, (int)call[1], (char *)call[2]))
            return removing(&at, call);
        break;
    case SYS_renameat2:
        if (locate(&at, (int)call[1], (char *)call[2]) && locate(&other, (int)call[3], (char *)call[4]))
            return renaming(&at, &other, call);
        break;
    }
    return through(call);
}

static void on_trap(int signal_number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    long call[7] = {info->si_syscall,     registers[REG_RDI], registers[REG_RSI], registers[REG_RDX],
                    registers[REG_R10], registers[REG_R8],  registers[REG_R9]};
    int errno_before = errno;
    (void)signal_number;
    while (atomic_flag_test_and_set(&busy))
        sched_yield();
    registers[REG_RAX] = watch(call);
    atomic_flag_clear(&busy);
    errno = errno_before;
}

static const int TRAPPED[] = {
    SYS_open, SYS_creat, SYS_openat, SYS_write, SYS_writev, SYS_pwrite64, SYS_pwritev, SYS_ftruncate, SYS_truncate,
    SYS_fallocate, SYS_sendfile, SYS_copy_file_range, SYS_fsync, SYS_fdatasync, SYS_close, SYS_chmod, SYS_fchmod,
    SYS_fchmodat, SYS_mkdir, SYS_mkdirat, SYS_link, SYS_linkat, SYS_symlink, SYS_symlinkat, SYS_unlink, SYS_unlinkat,
    SYS_rmdir, SYS_rename, SYS_renameat, SYS_renameat2,
};
enum { TRAPS = sizeof TRAPPED / sizeof *TRAPPED };

static int install(void) {
    struct sock_filter filter[TRAPS + 8];
    unsigned long address = (unsigned long)gate_open;
    int length = 0;
#define LOAD(field) (struct sock_filter) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define LOAD_AT(offset) (struct sock_filter) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offset)
#define EQUAL(value, yes, no) (struct sock_filter) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, yes, no)
    filter[length++] = LOAD_AT(offsetof(struct seccomp_data, instruction_pointer));
    filter[length++] = EQUAL((unsigned)address, 0, 2);
    filter[length++] = LOAD_AT(offsetof(struct seccomp_data, instruction_pointer) + 4);
    filter[length++] = EQUAL((unsigned)(address >> 32), TRAPS + 1, 0);
    filter[length++] = LOAD(nr);
    for (int at = 0; at < TRAPS; at++)
        filter[length++] = EQUAL(TRAPPED[at], TRAPS - at, 0);
    filter[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    filter[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP);
    struct sock_fprog program = {.len = length, .filter = filter};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0);
}

/* Begin to watch `folder`, and do `what` at operation `at`. Returns 0, or the errno of what went wrong. */
int arm(const char *folder, const char *journal_file, const char *kept_folder, long at, int what, int error) {
    struct sigaction handler = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};
    sigfillset(&handler.sa_mask); /* a handler of Python's writes, and that would be a trap within a trap */
    snprintf(watched, sizeof watched, "%s", folder);
    snprintf(kept, sizeof kept, "%s", kept_folder);
    journal = open(journal_file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    armed_at = at;
    action = what;
    error_number = error;
    if (journal < 0 || sigaction(SIGSYS, &handler, NULL) || install())
        return errno;
    return 0;
}
