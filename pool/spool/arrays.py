"""A numpy array as a .npy file (format 1.0) without copying it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from pool.spool import fsops
from pool.spool.fsops import Buffer


def npy_chunks(array: Any) -> list[Buffer]:
    """Header and data of `array` (any shape; copied only when it is not contiguous), ready for write(2)."""
    import numpy as np

    contiguous: Any = np.ascontiguousarray(array)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(contiguous))
    data = memoryview(contiguous).cast("B") if contiguous.nbytes else memoryview(b"")
    return [header.getvalue(), data]


def store_array(array: Any, temp: str, target: Path, *, sync: bool) -> None:
    """Write `array` to `target`, whole or not at all."""
    fsops.put(temp, str(target), npy_chunks(array), sync=sync)
    if sync:
        fsops.sync_dir(str(target.parent))
