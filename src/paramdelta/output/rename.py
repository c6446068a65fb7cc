"""Renames of folders that replace nothing by accident.

Linux has renameat2 (since 3.15), with RENAME_NOREPLACE and RENAME_EXCHANGE. Where the system or the
file system lacks them, the existence of the target is checked first, and an exchange is done in
three steps, undone if one fails.
"""

import ctypes
import errno
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

_AT_FDCWD = -100
_NOREPLACE, _EXCHANGE = 1, 2
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


def rename_new(source: Path, target: Path) -> None:
    """Rename a folder to a name that must not exist; raises OSError, FileExistsError."""
    if _renameat2(source, target, _NOREPLACE):
        return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    source.rename(target)


def exchange(one: Path, other: Path) -> None:
    """Give two folders each other's names; raises OSError, and then nothing has changed."""
    if _renameat2(one, other, _EXCHANGE):
        return
    aside = other.with_name(other.name + "-aside")
    rename_new(other, aside)
    try:
        one.rename(other)
    except OSError:
        aside.rename(other)
        raise
    aside.rename(one)


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    """Whether the system did it; raises OSError where it refused."""
    function = _function()
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(source), None, str(target))


@cache
def _function() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return None
    function.argtypes = (
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_uint,
    )
    function.restype = ctypes.c_int
    return function
