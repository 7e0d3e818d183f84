"""Numbers out of pickles, without running them."""

from __future__ import annotations

import argparse
import io
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference import plain

NUMBERS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary(max_size=9)
)
CONTENT = st.recursive(
    NUMBERS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.tuples(inner, inner), st.dictionaries(st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(CONTENT, st.integers(0, 4))
def test_what_was_pickled(content: Any, protocol: int) -> None:
    if protocol < 3 and "b'" in repr(content).replace('b"', "b'"):  # bytes were pickled as a call then
        protocol = 3
    assert plain.read(io.BytesIO(pickle.dumps(content, protocol))) == content


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4),
        np.asfortranarray(np.arange(12, dtype=np.int32).reshape(3, 4)),
        np.arange(3, dtype=">i4"),
        np.array([True, False]),
        np.zeros((0, 2), np.float32),
        np.array([1, "x", None], object),
    ],
)
def test_arrays(array: np.ndarray[Any, Any], protocol: int) -> None:
    content = {"a": array, "again": [array], "number": np.float64(0.25)}
    found = plain.read(io.BytesIO(pickle.dumps(content, protocol)))
    assert found["a"].dtype == array.dtype
    assert np.array_equal(found["a"], array)
    assert found["again"][0].shape == array.shape
    assert found["number"] == 0.25


class Payload:
    """Code that runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("ran",)


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
@pytest.mark.parametrize("content", [Payload(), [argparse.Namespace(a=1)], {"a": {1, 2}}, {"f": len}])
def test_nothing_is_run(content: Any, protocol: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"it (holds|calls|is no pickle)"):
        plain.read(io.BytesIO(pickle.dumps(content, protocol)))
    assert capsys.readouterr().out == ""


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        plain.read(io.BytesIO(data))
    except ValueError:
        return


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_damaged_pickles_are_read_or_refused(at: int, byte: int) -> None:
    data = bytearray(pickle.dumps({"a": np.arange(6.0).reshape(2, 3), "b": [1, "x", 2.5, None]}, 4))
    data[at % len(data)] = byte
    try:
        plain.read(io.BytesIO(bytes(data)))
    except ValueError:
        return


@pytest.mark.parametrize("name", [",8", "f8,f8", "(2", "f8[", "i4\n", "datetime64", ""])
def test_a_dtype_that_is_no_kind_of_number(name: str) -> None:
    """numpy parses lists of kinds, and answers what is none with errors of its parser."""
    text = name.encode()
    kind = b"\x80\x04\x8c\x05numpy\x8c\x05dtype\x93\x8c" + bytes([len(text)]) + text + b"\x85R."
    with pytest.raises(ValueError, match="no kind of number"):
        plain.read(io.BytesIO(kind))
