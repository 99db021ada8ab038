"""How the process asks the system for memory, so that a busy hour does not make it large for good.

glibc keeps what was freed in pools, more of them the more threads there are, and takes ever larger
pieces from them: 109 photos of 4 megapixels, most by 8 clients at a time, left 1,724 MB behind.
Told to take pieces above a quarter of a megabyte from the system, and to give them back, the
process stays at 755 (`benchmarks/space.py`).
"""

import contextlib
import ctypes

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # of malloc.h


def return_freed_memory() -> None:
    """To be called before threads are started; without effect where there is no glibc."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, 256 * 1024)
        library.mallopt(M_ARENA_MAX, 2)
