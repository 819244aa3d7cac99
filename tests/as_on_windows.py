"""Run commands of moeits while all that Windows lacks is hidden from it: `python -m tests.as_on_windows COMMANDS.json`.

Only from moeits: Python itself, and the libraries, are those of this machine and need their own. It stands for the
imports and the calls; the paths, encodings and sharing rules of the system itself are not here.
"""

import builtins
import errno
import json
import os
import signal
import stat
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

HIDDEN_MODULES = {
    *("_posixsubprocess", "crypt", "curses", "fcntl", "grp", "nis", "posix", "pty", "pwd", "readline", "resource"),
    *("spwd", "syslog", "termios", "tty"),
}
HIDDEN_IN_OS = {
    *("O_CLOEXEC", "O_DIRECTORY", "O_DSYNC", "O_NOATIME", "O_NOFOLLOW", "O_NONBLOCK", "O_SYNC", "O_TMPFILE"),
    *("WIFEXITED", "WIFSIGNALED", "WNOHANG", "chown", "chroot", "copy_file_range", "fchdir", "fchmod", "fchown"),
    *("fdatasync", "fork", "forkpty", "fstatvfs", "getegid", "geteuid", "getgid", "getgroups", "getloadavg"),
    *("getpgid", "getpriority", "getresuid", "getuid", "getxattr", "initgroups", "killpg", "lchown", "lockf"),
    *("mkfifo", "mknod", "nice", "openpty", "pathconf", "posix_fadvise", "posix_fallocate", "posix_spawn", "pread"),
    *("preadv", "pwrite", "pwritev", "readv", "register_at_fork", "sched_getaffinity", "sched_yield", "sendfile"),
    *("setpgid", "setpriority", "setsid", "setuid", "setxattr", "statvfs", "sync", "sysconf", "uname", "wait"),
    *("wait3", "wait4", "waitid", "writev"),
}
SIGNALS_OF_WINDOWS = {"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL", "SIG_IGN"}
HIDDEN_IN_SIGNAL = {
    *(name for name in dir(signal) if name.startswith("SIG") and name not in SIGNALS_OF_WINDOWS),
    *("ITIMER_REAL", "alarm", "pause", "pthread_kill", "pthread_sigmask", "setitimer", "siginterrupt", "sigwait"),
}


class Without(ModuleType):
    """A module without some of its names, and with others in the place of some."""

    def __init__(self, module: ModuleType, hidden: set[str], replaced: Mapping[str, Any]) -> None:
        super().__init__(module.__name__)
        self.__dict__.update({n: v for n, v in vars(module).items() if n not in hidden and not n.startswith("__")})
        self.__dict__.update(replaced)


def open_on_windows(path: Any, flags: int, *more: Any, **others: Any) -> int:
    """`os.open`, which opens no folder there."""
    if Path(path).is_dir():
        raise PermissionError(errno.EACCES, "Permission denied", str(path))
    return os.open(path, flags, *more, **others)


def fsync_on_windows(number: int) -> None:
    """`os.fsync`, which there syncs only what can be written."""
    import fcntl

    if stat.S_ISDIR(os.fstat(number).st_mode) or fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")
    os.fsync(number)


def hide() -> None:
    """From here on moeits imports what Windows has. Texts opened in the encoding of the place are errors in it, too."""
    calls = {"name": "nt", "open": open_on_windows, "fsync": fsync_on_windows}
    seen = {"os": Without(os, HIDDEN_IN_OS, calls), "signal": Without(signal, HIDDEN_IN_SIGNAL, {})}
    real = builtins.__import__

    def imported(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        if str((globals or {}).get("__name__", "")).split(".")[0] == "moeits":
            if name.split(".")[0] in HIDDEN_MODULES:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            if name in seen:
                return seen[name]
        return real(name, globals, locals, fromlist, level)

    builtins.__import__ = imported
    warnings.filterwarnings("error", category=EncodingWarning, module=r"moeits\b")


def main(commands: list[list[str]]) -> None:
    hide()
    from moeits.command_line.app import application

    for command in commands:
        application()(command, prog_name="moeits", standalone_mode=False)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
