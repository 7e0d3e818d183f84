"""Everything that may travel comes back as it went; everything else is refused with ProtocolError, and in bounds."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool.constants import ARRAY_FILE_BYTES, MAX_DEPTH, MAX_DROP_BYTES
from pool.errors import ProtocolError
from pool.format import codec
from pool.spool import arrays

SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary()
)
KEYS = st.text() | st.integers(-(2**63), 2**64 - 1) | st.booleans() | st.none() | st.binary()
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=5) | st.dictionaries(KEYS, v, max_size=5), max_leaves=20)
TEXT_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda v: st.lists(v, max_size=5) | st.dictionaries(st.text(), v, max_size=5),
    max_leaves=20,
)
DTYPES = ["?", "i1", "u1", "<i2", ">i2", "<u4", ">i8", "<f2", "<f4", ">f8", "<f8", "<c8", "<c16", np.dtype("g").str]


# ---- round trips


@given(VALUES)
def test_what_is_allowed_comes_back(value: Any) -> None:
    assert codec.decode(codec.encode(value)) == value


@given(TEXT_VALUES)
def test_json_comes_back(value: Any) -> None:
    assert codec.decode_json(json.dumps(value).encode()) == value
    assert json.loads(codec.to_json(value)) == value


@given(TEXT_VALUES)
def test_untrusted_msgpack_comes_back(value: Any) -> None:
    assert codec.decode(msgpack.packb(value), strict=True) == value


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (0, 4), (1, 2, 3, 4)])
def test_arrays_travel_inside(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    back = codec.decode(codec.encode({"a": array}))["a"]
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert np.array_equal(back, array)


@pytest.mark.parametrize(
    "view", [lambda a: a.T, lambda a: a[::2], lambda a: a[:, 1], lambda a: np.asfortranarray(a), lambda a: a[::-1]]
)
def test_arrays_that_are_not_contiguous(view: Any) -> None:
    array = view(np.arange(12.0).reshape(3, 4))
    assert np.array_equal(codec.decode(codec.encode(array)), array)


def test_scalars_paths_and_tuples_become_plain() -> None:
    value = {"f": np.float32(0.5), "i": np.int64(-3), "b": np.bool_(True), "p": Path("/a/b"), "t": (1, (2, 3))}
    assert codec.decode(codec.encode(value)) == {"f": 0.5, "i": -3, "b": True, "p": "/a/b", "t": [1, [2, 3]]}


def _store(folder: Path) -> Any:
    names = iter(f"array-{number}.npy" for number in range(100))

    def sink(array: Any) -> str:
        name = next(names)
        arrays.store_array(array, str(folder / "half"), folder / name, sync=False)
        return name

    return sink


@pytest.mark.parametrize("dtype", ["u1", "<f8", ">f4", "<c16"])
def test_large_arrays_are_files_opened_without_a_copy(tmp_path: Path, dtype: str) -> None:
    count = ARRAY_FILE_BYTES // np.dtype(dtype).itemsize
    large, small = np.arange(count).astype(dtype).reshape(2, -1), np.arange(3)
    data = codec.encode({"large": large, "small": small, "view": large.T}, _store(tmp_path))
    assert len(data) < 1000
    back = codec.decode(data, directory=tmp_path)
    assert isinstance(back["large"], np.memmap)
    assert not back["large"].flags.writeable
    assert back["large"].dtype == large.dtype
    assert np.array_equal(back["large"], large)
    assert np.array_equal(back["view"], large.T)
    assert np.array_equal(back["small"], small)


def test_one_byte_less_stays_inside(tmp_path: Path) -> None:
    codec.encode(np.zeros(ARRAY_FILE_BYTES - 1, "u1"), _store(tmp_path))
    assert not list(tmp_path.iterdir())


# ---- what cannot be stored, and who says so


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ({"a": {"b": [1, object()]}}, "a.b[1]"),
        ({"a": 2**64}, "a: an int cannot be stored"),
        ({"a": -(2**63) - 1}, "a: an int cannot be stored"),
        ({"a": {1, 2}}, "a: a set"),
        ({"a": "\ud800"}, "a: text with half a surrogate pair cannot be stored"),
        ({"a": 1j}, "a: a complex"),
        ({"a": np.array([object()])}, "a: a numpy.ndarray"),
        ({"a": np.array(["text"])}, "a: a numpy.ndarray"),
        ({"a": np.zeros(2, "f8,i4")}, "a: a numpy.ndarray"),
        ({"a": [{Path("/x"): 1}]}, "a[0]: the key PosixPath('/x') cannot be stored"),
        ({"a": {(1, 2): 3}}, "a: the key (1, 2)"),
        ([{"a": [{(): 3}]}], "[0].a[0]: the key ()"),
        ({"a": {frozenset(): 3}}, "a: the key frozenset()"),
        ({"a": {2**64: 3}}, "a: the key 18446744073709551616"),
        ({"a": type("Engine", (), {})()}, "Engine"),
        ({"a": lambda: 0}, "function"),
    ],
)
def test_the_key_that_cannot_be_stored_is_named(value: Any, word: str) -> None:
    with pytest.raises(ProtocolError, match=re.escape(word)):
        codec.encode(value)


def test_endless_and_deep_values_are_refused_at_once() -> None:
    circle: list[Any] = []
    circle += [circle, circle]
    tower: Any = 1
    for _ in range(100_000):
        tower = [tower]
    begun = time.process_time()
    for value in (circle, {"a": circle}, tower):
        with pytest.raises(ProtocolError, match="deep"):
            codec.encode(value)
    assert time.process_time() - begun < 5.0  # processor time: without a bound it would be minutes


class Anything:
    """Encodes as nothing and compares with nothing."""


@given(
    st.recursive(
        SCALARS | st.builds(Anything) | st.builds(complex),
        lambda v: st.lists(v) | st.tuples(v, v) | st.dictionaries(KEYS | st.tuples(st.integers()), v),
        max_leaves=10,
    )
)
def test_encode_answers_with_bytes_that_decode_or_protocol_error(value: Any) -> None:
    try:
        data = codec.encode(value)
    except ProtocolError:
        return
    codec.decode(data)


# ---- bytes from a foreign hand


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_protocol_error(data: bytes) -> None:
    for strict in (False, True):
        try:
            codec.decode(data, strict=strict)
        except ProtocolError:
            pass
    try:
        codec.decode_json(data)
    except ProtocolError:
        pass


@given(st.sampled_from([1, 2, -1, 0, 5, 127]), st.binary(max_size=40) | VALUES.map(msgpack.packb))
def test_any_extension_is_a_value_or_protocol_error(code: int, body: bytes) -> None:
    data = msgpack.packb(msgpack.ExtType(code, body) if code >= 0 else [])
    if code < 0:
        data = b"\xc7" + bytes([len(body) & 255]) + b"\xff" + body
    for options in ({"strict": True}, {"arrays": False}, {"directory": Path("/nowhere")}):
        try:
            codec.decode(data, **options)  # type: ignore[arg-type]
        except ProtocolError:
            pass


@given(st.data())
def test_a_changed_or_cut_record_is_a_value_or_protocol_error(data: st.DataObject) -> None:
    good = codec.encode({"a": [1, 2.5, "x", None], "n": np.arange(4), "d": {"deep": [b"\0", {}]}})
    at = data.draw(st.integers(0, len(good) - 1))
    changed = good[:at] + bytes([data.draw(st.integers(0, 255))]) + good[at + 1 :]
    for bad in (changed, good[:at]):
        try:
            codec.decode(bad)
        except ProtocolError:
            pass


def test_every_cut_and_every_tail_is_refused() -> None:
    good = codec.encode({"a": [1, "two", 3.0, {"four": b"five"}]})
    for at in range(len(good)):
        with pytest.raises(ProtocolError):
            codec.decode(good[:at], strict=True)
    for tail in (b"\0", b"\xc0", good):
        with pytest.raises(ProtocolError):
            codec.decode(good + tail, strict=True)


def _tower(depth: int) -> bytes:
    return b"\x91" * depth + b"\xc0"


@pytest.mark.parametrize("depth", [MAX_DEPTH + 2, 1_000, 100_000])
@pytest.mark.invariant(24)
def test_nesting_is_bounded(depth: int) -> None:
    begun = time.process_time()
    for data in (_tower(depth), b"\x81\xa1a" * depth + b"\xc0"):
        with pytest.raises(ProtocolError):
            codec.decode(data, strict=True)
    for text in (b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth, b"[" * depth):
        with pytest.raises(ProtocolError):
            codec.decode_json(text)
    assert time.process_time() - begun < 5.0  # processor time: without a bound it would be minutes


def test_nesting_up_to_the_limit_is_fine() -> None:
    assert codec.decode(_tower(MAX_DEPTH), strict=True)
    assert codec.decode_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (b'{"a": 1, "a": 2}', "'a' is given twice"),
        (b'{"x": {"\xc3\xa4": 1, "\\u00e4": 2}}', "given twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": Infinity}', "Infinity"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": [-1e999]}', "too large"),
        (b'{"a": 18446744073709551616}', "65 bits"),
        (b'{"a": ' + b"9" * 4000 + b"}", "bits"),
        (b'{"a": ' + b"9" * 100_000 + b"}", "not valid JSON"),
        (b'{"a": 1', "line 1"),
        (b'{"a": 1} x', "line 1"),
        (b'{"a": 1}{"b": 2}', "line 1"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"", "not valid JSON"),
        (b"\0", "not valid JSON"),
        (b'{"a": "\x01"}', "not valid JSON"),
        (b"{'a': 1}", "not valid JSON"),
    ],
)
def test_json_that_is_refused(text: bytes, word: str) -> None:
    with pytest.raises(ProtocolError, match=word):
        codec.decode_json(text)


def test_json_with_a_byte_order_mark_is_taken() -> None:
    assert codec.decode_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"\x82\xa1a\x01\xa1a\x02", "given twice"),
        (b"\x81\x01\x02", "key"),  # an integer as a key
        (b"\x81\xc4\x01a\x02", "not text"),  # bytes as a key
        (b"\x81\xc0\x02", "key"),
        (b"\x81\x91\x01\x02", "key"),  # a list as a key
        (b"\xa2\xff\xfe", "not valid msgpack"),  # a text that is not UTF-8
        (b"\xc7\x01\x05\x00", "extension type 5"),
        (msgpack.packb(msgpack.ExtType(2, msgpack.packb(["/etc/passwd", "<f8", [1]]))), "extension type 2"),
        (b"\xd6\xff\0\0\0\0", "timestamp"),
        (b"\x91\x81\xa1a\xd6\xff\0\0\0\0", "timestamp"),
        (msgpack.packb(msgpack.ExtType(1, msgpack.packb(["|O", [1], b"\0" * 8]))), "damaged"),
        (msgpack.packb(msgpack.ExtType(1, msgpack.packb(["<f8", [-1], b"\0" * 8]))), "damaged"),
        (msgpack.packb(msgpack.ExtType(1, msgpack.packb(["<f8", [2**40], b"\0" * 8]))), "8 bytes for shape"),
        (b"\xdd\xff\xff\xff\xff", "not valid msgpack"),  # 4 billion items
        (b"\xdf\xff\xff\xff\xff", "not valid msgpack"),
        (b"\xdb\xff\xff\xff\xff", "not valid msgpack"),
        (b"\xc6\xff\xff\xff\xff", "not valid msgpack"),
        (b"\xc9\xff\xff\xff\xff\x01", "not valid msgpack"),
        (b"\xc1", "not valid msgpack"),  # never used
        (b"", "not valid msgpack"),
    ],
)
def test_msgpack_that_is_refused(data: bytes, word: str) -> None:
    with pytest.raises(ProtocolError, match=word):
        codec.decode(data, strict=True)


def test_a_small_array_may_be_dropped() -> None:
    kept = codec.decode(codec.encode({"a": np.arange(3)}), strict=True)
    assert np.array_equal(codec.decode(codec.encode(kept))["a"], np.arange(3))


# ---- array files that are not what the record says


def _record_of(array: Any, folder: Path) -> bytes:
    return codec.encode(array, _store(folder))


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "zip", "gone", "other shape", "other type", "directory"])
def test_a_damaged_array_file_is_a_protocol_error(tmp_path: Path, damage: str) -> None:
    array = np.zeros(ARRAY_FILE_BYTES, "u1")
    data = _record_of(array, tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.unlink()
    if damage == "directory":
        path.mkdir()
    elif damage == "zip":
        with open(path, "wb") as file:
            np.savez(file, a=array)
    elif damage.startswith("other"):
        with open(path, "wb") as file:
            np.save(file, array.reshape(2, -1) if damage == "other shape" else array.view("i1"))
    elif damage != "gone":
        path.write_bytes({"empty": b"", "cut": content[:50_000], "text": b"\x93NUMPY\x01\0\x05\0nosse"}[damage])
    with pytest.raises(ProtocolError, match=r"array-0\.npy"):
        codec.decode(data, directory=tmp_path)


@pytest.mark.parametrize("name", ["", ".", "..", "../x.npy", "/etc/passwd", ".hidden", 7, None, ["x"]])
def test_an_array_file_lies_in_its_directory_and_nowhere_else(tmp_path: Path, name: object) -> None:
    data = msgpack.packb(msgpack.ExtType(2, msgpack.packb([name, "<f8", [1]])))
    with pytest.raises(ProtocolError):
        codec.decode(data, directory=tmp_path)


@pytest.mark.parametrize("dtype", ["|O", "O", "f8,f8", "(2,)f8", "f8,(f8", "<U3", "|V8", "<M8[s]", "", "<f8\n", 8])
def test_array_types_with_a_meaning_of_their_own_are_refused(dtype: object) -> None:
    data = msgpack.packb(msgpack.ExtType(1, msgpack.packb([dtype, [1], b"\0" * 8])))
    with pytest.raises(ProtocolError):
        codec.decode(data)


def test_the_supervisor_reads_arrays_without_numpy(child_env: dict[str, str]) -> None:
    data = codec.encode({"a": np.arange(3)})
    program = (
        "import sys; from pool.format import codec; value = codec.decode(bytes.fromhex(sys.argv[1]), arrays=False);"
        "codec.decode(bytes.fromhex(sys.argv[1]), strict=True);"
        "assert value['a'].code == 1; assert 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, data.hex()], env=child_env, check=True, timeout=30)


# ---- bombs

_BOMBS = """
import resource, sys, time
from pool.format import codec
from pool.errors import ProtocolError
size = int(sys.argv[1])
bombs = {
    "arrays of a million": b"\\xdd\\x00\\x0f\\x42\\x40" * (size // 5),
    "maps of a million": b"\\xdf\\x00\\x0f\\x42\\x40" * (size // 5),
    "arrays of what is left": b"".join(b"\\xdd" + (size - 5 * n).to_bytes(4, "big") for n in range(1, size // 5)),
    "empty maps": b"\\xdd" + (size - 5).to_bytes(4, "big") + b"\\x80" * (size - 5),
    "empty arrays": b"\\xdd" + (size - 5).to_bytes(4, "big") + b"\\x90" * (size - 5),
    "arrays": (b"\\xc7\\x0a\\x01\\x93\\xa3<f8\\x91\\x00\\xc4\\x00") * (size // 13),
}
texts = {
    "empty lists": b"[" + b"[]," * (size // 3 - 2) + b"1]",
    "empty maps": b"[" + b"{}," * (size // 3 - 2) + b"1]",
    "maps in maps": b'{"a":' * (size // 5),
    "numbers": b"[" + b"1," * (size // 2 - 2) + b"1]",
    "one number": b"1" * size,
}
resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20))
for name, data, decode in [
    *((name, data, lambda d: codec.decode(d, strict=True)) for name, data in bombs.items()),
    *((name, data, codec.decode_json) for name, data in texts.items()),
]:
    begun = time.process_time()
    try:
        decode(data)
        how = "taken"
    except ProtocolError:
        how = "refused"
    spent = time.process_time() - begun
    print(f"{name}: {how} in {spent * 1000:.0f} ms, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB")
    assert spent < 5, name
"""


@pytest.mark.invariant(24)
def test_bombs_are_defused_in_half_a_gigabyte(child_env: dict[str, str]) -> None:
    argv = [sys.executable, "-c", _BOMBS, str(MAX_DROP_BYTES)]
    done = subprocess.run(argv, env=child_env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


# ---- for people


def test_json_for_people_is_json_for_every_language() -> None:
    value = {
        "nan": math.nan,
        "inf": [math.inf],
        "bytes": b"1234",
        "array": np.zeros((2, 3), "f4"),
        "path": Path("/a"),
        "scalar": np.int64(3),
        "flag": np.bool_(True),
        "half": np.float32(0.5),
        7: "number",
        b"k": "bytes",
        "ä": "ü",
    }
    text = codec.to_json(value)
    back = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert back["nan"] is None
    assert back["inf"] == [None]
    assert back["bytes"] == {"bytes": 4}
    assert back["array"] == {"array": [2, 3], "dtype": "float32"}
    assert (back["path"], back["scalar"], back["flag"], back["half"]) == ("/a", 3, True, 0.5)
    assert back["7"] == "number"
    assert back["ä"] == "ü"
    assert "ü" in text


# ---- without numpy


def test_without_numpy_an_array_is_refused_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    large = np.zeros(ARRAY_FILE_BYTES // 8)
    np.save(tmp_path / "a.npy", large)
    inside, beside = codec.encode({"a": np.arange(3)}), codec.encode({"a": large}, lambda array: "a.npy")
    assert codec.decode(beside, directory=tmp_path)["a"].shape == large.shape
    monkeypatch.setitem(sys.modules, "numpy", None)
    for data in (inside, beside):
        with pytest.raises(ProtocolError, match="numpy is not installed here: pip install numpy"):
            codec.decode(data, directory=tmp_path)
        assert type(codec.decode(data, arrays=False)["a"]) is msgpack.ExtType
    with pytest.raises(ProtocolError, match="a torch tensor cannot be stored") as caught:
        codec.encode({"deep": [torch.arange(3)]})
    assert (caught.value.path, caught.value.hint) == ("deep[0]", "pip install numpy: it travels as an array")
    assert codec.decode(codec.encode({"plain": [1, "a"]})) == {"plain": [1, "a"]}
