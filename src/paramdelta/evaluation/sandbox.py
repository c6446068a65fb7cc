"""The process that runs one program: `python -I -B sandbox.py PIPE MEMORY SECONDS`.

Reads a secret of 16 bytes and the program from standard input, gives up all rights that it does not
need, runs the program, and writes the secret to the pipe if it ended without an error.
"""

import ctypes
import os
import platform
import resource
import struct
import sys

ALLOW, DENY = 0x7FFF0000, 0x00050000 | 1  # EPERM
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Numbers of the calls that are allowed, as on x86-64 and on arm64.
CALLS = {
    "x86_64": (
        # read, write, close, stat, fstat, lstat, poll, lseek, mmap, mprotect, munmap, brk
        0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,
        # rt_sigaction, rt_sigprocmask, rt_sigreturn, pread64, readv, writev, access
        13, 14, 15, 17, 19, 20, 21,
        # select, sched_yield, mremap, madvise, dup, nanosleep, getpid, exit, uname, getcwd
        23, 24, 25, 28, 32, 35, 39, 60, 63, 79,
        # readlink, gettimeofday, getrlimit, getrusage, sysinfo, times, getuid, getgid, geteuid
        89, 96, 97, 98, 99, 100, 102, 104, 107,
        # getegid, getppid, sigaltstack, gettid, time, futex, sched_getaffinity, getdents64
        108, 110, 131, 186, 201, 202, 204, 217,
        # restart_syscall, clock_gettime, clock_getres, clock_nanosleep, exit_group, newfstatat
        219, 228, 229, 230, 231, 262,
        # readlinkat, faccessat, pselect6, ppoll, getrandom, statx, rseq, faccessat2
        267, 269, 270, 271, 318, 332, 334, 439,
    ),
    "aarch64": (
        # getcwd, dup, faccessat, getdents64, lseek, read, write, readv, writev, pread64
        17, 23, 48, 61, 62, 63, 64, 65, 66, 67,
        # pselect6, ppoll, readlinkat, newfstatat, fstat, exit, exit_group, futex, close
        72, 73, 78, 79, 80, 93, 94, 98, 57,
        # nanosleep, clock_gettime, clock_getres, clock_nanosleep, restart_syscall
        101, 113, 114, 115, 128,
        # sched_getaffinity, sched_yield, sigaltstack, rt_sigaction, rt_sigprocmask, rt_sigreturn
        123, 124, 132, 134, 135, 139,
        # times, uname, getrusage, gettimeofday, getpid, getppid, getuid, geteuid, getgid, getegid
        153, 160, 165, 169, 172, 173, 174, 175, 176, 177,
        # gettid, sysinfo, brk, munmap, mremap, mmap, mprotect, madvise, getrandom, statx, rseq
        178, 179, 214, 215, 216, 222, 226, 233, 278, 291, 293,
        # faccessat2
        439,
    ),
}  # fmt: skip
# Calls to open a file, and which argument holds the flags: allowed for reading only.
OPENS = {"x86_64": ((2, 1), (257, 2)), "aarch64": ((56, 2),)}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def program_of(machine: str) -> list[tuple[int, int, int, int]]:
    """The filter: (code, jump if true, jump if false, value) for each instruction."""
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    found = [
        (load, 0, 0, 4),
        (equal, 1, 0, ARCHITECTURES[machine]),
        (give, 0, 0, DENY),
        (load, 0, 0, 0),
        (at_least, 0, 1, 0x40000000),  # the other interface of x86-64 (x32)
        (give, 0, 0, DENY),
    ]
    for number, argument in OPENS[machine]:
        found += [
            (equal, 0, 4, number),
            (load, 0, 0, 16 + 8 * argument),
            (any_bit, 0, 1, WRITES),
            (give, 0, 0, DENY),
            (give, 0, 0, ALLOW),
        ]
    for number in CALLS[machine]:
        found += [(equal, 0, 1, number), (give, 0, 0, ALLOW)]
    return [*found, (give, 0, 0, DENY)]


def confine(memory: int, seconds: float) -> None:
    """Give up all rights but to compute, to read, and to write to files that are open.

    Raises:
        OSError: the system cannot do it.
    """
    whole = max(1, round(seconds))
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, whole),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(what, (most, most))
    machine = platform.machine()
    if sys.platform != "linux" or machine not in CALLS:
        raise OSError(f"no filter for {sys.platform} on {machine}")
    instructions = program_of(machine)
    code = b"".join(struct.pack("=HBBI", *each) for each in instructions)
    held = ctypes.create_string_buffer(code)
    given = struct.pack("@HP", len(instructions), ctypes.addressof(held))
    pointer = ctypes.create_string_buffer(given)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    if prctl(38, 1, 0, 0, 0) or prctl(22, 2, ctypes.addressof(pointer), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


def main() -> None:
    """Run the program of standard input."""
    pipe, memory, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    given = sys.stdin.buffer.read()
    secret, text = given[:16], given[16:].decode("utf-8")
    del given
    sys.argv = ["program"]
    code = compile(text, "program", "exec")
    confine(memory, seconds)
    exec(code, {"__name__": "__main__"})  # noqa: S102 - that is what this process is for
    os.write(pipe, secret)
    os._exit(0)


if __name__ == "__main__":
    main()
