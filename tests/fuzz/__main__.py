"""Fuzz one target until something is wrong: `python -m fuzz TARGET` in tests/. See `fuzz.targets`."""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]


def main() -> None:
    from fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--plain", action="store_true", help="without atheris")
    parser.add_argument("corpus", nargs="*")
    chosen = parser.parse_args()
    print(f"{chosen.target} --seed {chosen.seed}", flush=True)
    try:
        if chosen.plain:
            raise ImportError("not wanted")
        import atheris
    except ImportError as error:
        _plain(chosen.target, chosen.seed, chosen.seconds, str(error))
        return
    _coverage(atheris, chosen)


def _plain(target: str, seed: int, seconds: int, why: str) -> None:
    from fuzz.mutate import mutations
    from fuzz.targets import SEEDS, TARGETS

    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    until, count = time.monotonic() + seconds, 0
    for data in mutations(SEEDS[target], seed, 10**9):
        try:
            TARGETS[target](data)
        except BaseException:
            print(f"input {count}: {data!r}"[:2000], flush=True)
            raise
        count += 1
        if time.monotonic() > until:
            break
    print(f"{count} inputs in {seconds} s without coverage ({why})")


def _coverage(atheris: object, chosen: argparse.Namespace) -> None:
    import importlib
    import tempfile

    for module in ("pool.format.codec", "pool.format.names", "pool.job", "pool.supervise.intake", "fuzz.targets"):
        sys.modules.pop(module, None)
    instrumented = ["pool.format.codec", "pool.format.names", "pool.job", "pool.supervise.intake"]
    with atheris.instrument_imports(include=instrumented):  # type: ignore[attr-defined]
        targets = importlib.import_module("fuzz.targets")
    corpus = Path(tempfile.mkdtemp(prefix="filepool-corpus-"))
    for number, data in enumerate(targets.SEEDS[chosen.target]):
        (corpus / str(number)).write_bytes(data)
    argv = [
        sys.argv[0],
        f"-max_total_time={chosen.seconds}",
        f"-seed={chosen.seed}",
        "-timeout=5",
        "-rss_limit_mb=1024",
        "-max_len=20000",
        "-print_final_stats=1",
        str(corpus),
        *chosen.corpus,
    ]
    atheris.Setup(argv, targets.TARGETS[chosen.target])  # type: ignore[attr-defined]
    atheris.Fuzz()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
