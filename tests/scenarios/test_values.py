"""The table of docs/PROTOCOL.md, row by row and both ways: what travels arrives so, what does not is told so."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from pool.errors import JobFailed, JobRefused
from scenarios.world import ROOT, World

REFUSED = "refused: "
ENGINE = '''
import array, collections, dataclasses, datetime, decimal, fractions, http, io, os, pathlib, types, uuid, warnings
import numpy, torch

NAMES = dict(globals())


def make(code):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return eval(code, dict(NAMES))


class Values:
    """Gives back what it gets, or makes a value, and says beside it what shall arrive."""

    def load(self, device, options):
        pass

    def check(self, params):
        return params

    def run(self, params, context):
        if "make" in params:
            wanted = params["wanted"]
            return {"deep": [{"v": make(params["make"])}], "wanted": make(wanted) if wanted else None}
        value = params["deep"][0]["v"]
        return {"type": type(value).__name__, "v": value}

    def close(self):
        pass
'''


def rows() -> list[tuple[str, str]]:
    """(expression, what arrives: "itself", an expression, or "refused: hint")."""
    text = (ROOT / "docs" / "PROTOCOL.md").read_text("utf-8")
    table = text.partition("| a value like | arrives as |\n|---|---|\n")[2].partition("\n\n")[0]
    found = re.findall(r"^\| `(.+)` \| (.+) \|$", table, re.MULTILINE)
    assert len(found) == len(table.splitlines()), "a row that cannot be read"
    return [(value, told.strip("`")) for value, told in found]


@pytest.fixture(scope="module")
def make() -> Callable[[str], Any]:
    names: dict[str, Any] = {}
    exec(ENGINE, names)
    return names["make"]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def values_world(make_shared: Callable[[str], World]) -> World:
    world = make_shared("values")
    (world.folder / "values_engine.py").write_text(ENGINE)
    spec = {
        "engine": "values_engine:Values",
        "pythonpath": [str(world.folder)],
        "max_concurrent_tasks": 1,
        "retry_times": 0,
    }
    world.configure({"values": spec}).serve(ready=1)
    return world


def same(found: Any, wanted: Any) -> bool:
    """The same value of the same type, arrays with the same dtype and shape; NaN is NaN."""
    if isinstance(wanted, np.ndarray):
        like = isinstance(found, np.ndarray) and (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        return like and bool((found == wanted).all())
    if type(found) is not type(wanted):
        return False
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    if isinstance(wanted, dict):
        return list(found) == list(wanted) and all(same(found[key], wanted[key]) for key in wanted)
    return bool(found == wanted) or (found != found and wanted != wanted)


def test_the_table_has_every_kind_of_row() -> None:
    told = [told for _, told in rows()]
    assert len(told) > 60
    assert told.count("itself") > 5
    assert sum(word.startswith(REFUSED) for word in told) > 30


def test_parameters(values_world: World, make: Callable[[str], Any]) -> None:
    pool = values_world.pool()
    wrong, sent = [], []
    for code, told in rows():
        try:
            future = pool.submit("values", params={"deep": [{"v": make(code)}]})
        except JobRefused as error:
            if not (told.startswith(REFUSED) and error.path == "params.deep[0].v" and str(error).endswith(told[9:])):
                wrong.append(f"{code}: {error}")
            continue
        if told.startswith(REFUSED):
            wrong.append(f"{code}: was accepted")
        sent.append((code, make(code if told == "itself" else told), future))
    for code, wanted, future in sent:
        found = future.result(60)
        if found["type"] != type(wanted).__name__ or not same(found["v"], wanted):
            wrong.append(f"{code}: arrived as {found}")
    assert not wrong, "\n".join(wrong)


def test_results(values_world: World) -> None:
    pool = values_world.pool()
    futures, wrong = [], []
    for code, told in rows():
        wanted = code if told == "itself" else "" if told.startswith(REFUSED) else told
        futures.append((code, told, pool.submit("values", make=code, wanted=wanted)))
    for code, told, future in futures:
        try:
            found = future.result(60)
        except JobFailed as error:
            failure = error.failure
            path = failure.message.partition(": ")[0]
            seen = (REFUSED + failure.hint, path, failure.kind, failure.stage)
            if seen != (told, "deep[0].v", "engine", "publish"):
                wrong.append(f"{code}: {failure.describe()}")
            continue
        if told.startswith(REFUSED):
            wrong.append(f"{code}: was accepted")
        elif not same(found["deep"][0]["v"], found["wanted"]):
            wrong.append(f"{code}: arrived as {found}")
    assert not wrong, "\n".join(wrong)


def test_a_large_tensor_is_a_file_beside_the_record(values_world: World, tmp_path: Path) -> None:
    """Of a type that numpy does not know: every value of it is kept, and the file says what it was."""
    code = "torch.arange(600_000).to(torch.bfloat16)"
    pool = values_world.pool()
    future = pool.submit("values", make=code, wanted="")
    found = future.result(60)["deep"][0]["v"]
    assert isinstance(found, np.memmap)
    assert (found.dtype, found.shape, float(found[-1])) == (np.dtype("f4"), (600_000,), 598016.0)
    stored = pool.spool.read_record(future.id, arrays=False).value["deep"][0]["v"]
    assert msgpack.unpackb(stored.data)[1:] == ["<f4", [600_000], "torch.bfloat16"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.save(tmp_path / "again.npy", found)


@pytest.mark.gpu
def test_a_tensor_on_a_gpu(values_world: World) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    pool = values_world.pool()
    sent = pool.submit("values", params={"deep": [{"v": torch.arange(3, device="cuda")}]}).result(60)
    assert same(sent["v"], np.arange(3))
    made = pool.submit("values", make="torch.arange(3, device='cuda')", wanted="").result(60)
    assert same(made["deep"][0]["v"], np.arange(3))
