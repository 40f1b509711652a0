"""Errors whose message is meant for the person at the command line, not for a debugger."""

import contextlib
import errno
import os
from collections.abc import Iterator

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(ValueError):
    """What is wrong, where, and what is allowed, in one line; `core_rl.flags.main` prints it."""

    exit_code = 1


class UsageError(UserError):
    """The command itself is wrong: a flag, its value, or their combination."""

    exit_code = 2


class StorageError(UserError):
    """A file cannot be written; the disk may be full."""


@contextlib.contextmanager
def storage_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns an OSError into a StorageError that names `path`."""
    try:
        yield
    except OSError as error:
        cause = "disk full: " if error.errno in DISK_FULL else ""
        raise StorageError(f"{cause}cannot write {path}: {error.strerror}") from error
