"""An exchange of two paths in one step, where the system has one: at no moment is either name without a file."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

_AT_FDCWD = -100
_LINUX_EXCHANGE = 2  # RENAME_EXCHANGE of linux/fs.h
_MACOS_SWAP = 2  # RENAME_SWAP of sys/stdio.h
#: an old kernel, or a kind of disk that cannot
_CANNOT = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}


def exchange(one: Path, other: Path) -> bool:
    """Gives each of two files or folders of one disk the name of the other; False where the system cannot.

    Raises ``OSError`` as the system does; then nothing has changed.
    """
    import ctypes  # costs milliseconds, needed rarely

    if os.name != "posix":
        return False
    library: ctypes.CDLL = ctypes.CDLL(None, use_errno=True)
    first, second = os.fsencode(one), os.fsencode(other)
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        failed = library.renameat2(_AT_FDCWD, first, _AT_FDCWD, second, _LINUX_EXCHANGE)
    elif sys.platform == "darwin" and hasattr(library, "renamex_np"):
        failed = library.renamex_np(first, second, _MACOS_SWAP)
    else:
        return False
    if not failed:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT:
        return False
    raise OSError(code, os.strerror(code), str(other))
