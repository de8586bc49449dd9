"""Stacks: what each thread of this process is doing, written on a signal, also while it hangs.

The supervisor sends NATIVE to one thread after the other (tgkill) and PYTHON to any; each handler appends to the
descriptor that was given, and takes no lock and no memory of its own. A process that hangs is killed afterwards.
"""

import faulthandler
import os
import signal

cdef extern from *:
    """
    #define _GNU_SOURCE
    #include <errno.h>
    #include <execinfo.h>
    #include <signal.h>
    #include <string.h>
    #include <sys/prctl.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    #define HOLDFAST_FRAMES 64
    static int holdfast_stacks_fd = -1;
    static void holdfast_stacks_say(const char *text, size_t size) {
        while (size > 0) {
            ssize_t written = write(holdfast_stacks_fd, text, size);
            if (written <= 0) return;
            text += written;
            size -= (size_t)written;
        }
    }
    static void holdfast_stacks_number(long number) {
        char digits[24];
        size_t place = sizeof(digits);
        do digits[--place] = (char)('0' + number % 10); while ((number /= 10) > 0);
        holdfast_stacks_say(digits + place, sizeof(digits) - place);
    }
    static void holdfast_stacks_handler(int number) {
        int saved = errno, count;
        void *frames[HOLDFAST_FRAMES];
        char name[17] = {0};
        prctl(PR_GET_NAME, name);
        holdfast_stacks_say("thread ", 7);
        holdfast_stacks_number(syscall(SYS_gettid));
        holdfast_stacks_say(" (", 2);
        holdfast_stacks_say(name, strlen(name));
        holdfast_stacks_say(")\\n", 2);
        count = backtrace(frames, HOLDFAST_FRAMES);
        backtrace_symbols_fd(frames, count, holdfast_stacks_fd);
        holdfast_stacks_say("end\\n", 4);
        errno = saved;
        (void)number;
    }
    static int holdfast_stacks_install(int fd, int number) {
        struct sigaction action;
        void *frames[2];
        holdfast_stacks_fd = fd;
        backtrace(frames, 2);       /* loads libgcc, which a signal handler must not */
        memset(&action, 0, sizeof(action));
        action.sa_handler = holdfast_stacks_handler;
        action.sa_flags = SA_RESTART;
        sigfillset(&action.sa_mask);
        return sigaction(number, &action, NULL);
    }
    """
    int holdfast_stacks_install(int, int)

NATIVE = signal.SIGRTMIN + 4
PYTHON = signal.SIGRTMIN + 5


def install(int fd, int place):
    """Write stacks into `fd` from byte `place` on, whenever one of the signals comes; -1: nowhere.

    Raises:
        OSError: the descriptor cannot be written there.
    """
    if fd < 0:
        return
    os.lseek(fd, place, os.SEEK_SET)
    if holdfast_stacks_install(fd, NATIVE) != 0:
        raise OSError("sigaction failed")
    faulthandler.register(PYTHON, file=fd, all_threads=True, chain=False)
