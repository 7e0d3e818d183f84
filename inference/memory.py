"""Return freed memory to the system, and keep few compiled kernels."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import lru_cache
from typing import Any


def give_back() -> None:
    """Let the allocator hand free pages back: 5 to 40 ms. Does nothing where it is not glibc's.

    glibc keeps what was freed below a block still in use. After the large and varied blocks of a network's layers that
    is 100 MB per two minutes of sound, for as long as the process lives.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


def keep_few_kernels() -> None:
    """Let oneDNN keep 32 compiled kernels; before torch computes for the first time.

    torch computes on the CPU with oneDNN, which compiles a kernel for each shape and keeps 1,024 of them. Where each
    stretch of sound has a length of its own that is 80 MB after ten minutes, and none is used twice. A number that the
    environment names stays (oneDNN, "Primitive Cache").
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")


@lru_cache(maxsize=1)
def _trim() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
