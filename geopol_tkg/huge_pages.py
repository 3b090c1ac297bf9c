"""A restart of the program with an allocator that asks the system for huge pages. Imports nothing slow."""

import os
import sys
from contextlib import suppress
from pathlib import Path

_TUNABLES, _HUGE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"  # read when a process starts, never later
_OLDEST = (2, 35)  # glibc that knows it
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_HELP = {"-h", "--help", "--version"}


def restart_with_huge_pages() -> None:
    """Put this process in its own place with huge pages, where that has an effect; returns where it has none.

    On a CPU a step frees up to gigabytes, which glibc returns to the system and gets back in pages of 4 KiB, each
    zeroed on first touch. In huge pages that is 512 times fewer. Where they are given only to who asks for
    them (``madvise``), asking is up to an environment variable that must be there before the process is;
    children inherit it. Whoever sets ``GLIBC_TUNABLES``, to nothing even, has decided. A program that only
    calls this one, with arguments other than its own, is left alone.
    """
    arguments = sys.argv[1:]
    is_command = os.path.isfile(sys.argv[0]) and arguments == sys.orig_argv[-len(arguments) :]
    if arguments and is_command and not _HELP & set(arguments) and (environment := huge_pages()):
        with suppress(OSError):  # as fast as it was, then
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | environment)


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
