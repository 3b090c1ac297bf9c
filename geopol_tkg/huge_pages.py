"""A restart of the program with an allocator that asks the system for huge pages. Imports nothing slow."""

import os
import sys
from pathlib import Path

_TUNABLES, _HUGE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"  # read when a process starts, never later
_OLDEST = (2, 35)  # glibc that knows it
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_HELP = {"-h", "--help", "--version"}


def restart_with_huge_pages() -> None:
    """Put this process in its own place with huge pages, where that has an effect; returns where it has none.

    On a CPU a step frees up to gigabytes, which glibc returns to the system and gets back in pages of 4 KiB, each
    zeroed on first touch: up to a third of a step's time. In huge pages that is 512 times fewer. Where
    they are given only to who asks for them (``madvise``), asking is up to an environment variable that
    must be there before the process is. Whoever sets ``GLIBC_TUNABLES``, to nothing even, has decided.
    """
    if len(sys.argv) > 1 and not _HELP & set(sys.argv) and huge_pages():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | huge_pages())


def huge_pages() -> dict[str, str]:
    """Environment of a process that asks for huge pages; empty where that has no effect or was decided."""
    if _TUNABLES in os.environ:
        return {}
    try:
        library, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        known = library == "glibc" and tuple(map(int, version.split("."))) >= _OLDEST
        asked_for = "[madvise]" in _SETTING.read_text()
    except (AttributeError, ValueError, OSError):  # another system, another C library, no huge pages
        return {}
    return {_TUNABLES: _HUGE} if known and asked_for and sys.executable else {}
