"""The ``heygem`` backend: the HeyGem SDK in a Python of its own makes the frames, our encoder the file.

The SDK works in a folder of links of its own, made for this worker: it looks for everything by relative paths, and its
own config.ini may tell it to delete what lies in its working directory. Its interface, and what was measured of it:
the public extraction github.com/Holasyb918/HeyGem-Linux-Python-Hack (CPython 3.8). What runs over there is
`inference/foreign/guest/filepool_heygem.py`.
"""

from __future__ import annotations

import configparser
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from inference import media
from inference.base import Context, EngineError
from inference.encode import VideoWriter
from inference.ffmpeg import Process
from inference.finding import Finding
from inference.foreign import probe
from inference.foreign.host import Guest, Home, make_folder
from inference.join import Part
from inference.lipsync.params import HeyGemOptions, Options
from inference.lipsync.work import Picture, Shot

SDK = "filepool_heygem:HeyGem"
MODULE = "service.trans_dh_service"
FRAMES = "frames"  #: folder of a job in its scratch, as the guest has it
PACKAGES = ("numpy", "cv2", "torch", "onnxruntime", "librosa")  #: the larger ones that it imports
WARMUP_S = 1.0
_WRITTEN = ("temp", "result", "log")  #: folders of the SDK that it writes to
EXAMPLE = ("example/audio.wav", "example/video.mp4")  #: in the SDK's folder, as it is published


class HeyGemBackend:
    """The SDK, loaded once; a :class:`inference.lipsync.work.Camera`."""

    def __init__(self, options: Options) -> None:
        chosen = _chosen(options)
        home = home_of(chosen)
        probe.version(home.python)
        _require_sdk(chosen.folder)
        self._options, self._ffmpeg = chosen, options.ffmpeg
        folder = make_folder()
        try:
            self._room = room = Room.make(folder, chosen, options.ffmpeg)
            # A cancelled job is killed: what goes on in its processes would get into the next one's frames.
            self._guest = Guest(room.home(home), room.folders, chosen.patience(cancel_s=0.0), folder)
            self._guest.start()
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def shoot(self, shot: Shot) -> Picture:
        """One video: frames as the SDK makes them, encoded at once."""
        begun = time.monotonic()
        shot.begin("face_detecting", "the SDK reads the files and follows the face")
        # The SDK puts paths into shell commands: it gets names of ours, which are links.
        code = _code(shot.context)
        audio, video = (self._link(code, path) for path in (shot.audio, shot.video))
        reel = Reel(shot)
        try:
            asked = {"audio": audio, "video": video, "chaofen": self._options.chaofen, "pn": self._options.pn}
            made = self._guest.run(asked, _Named(shot.context, code, shot.check), reel.take)
            reel.take()
            picture = reel.finish(int(made["frames"]))
            if made["doubt"]:
                self._guest.end()  # the next job gets a fresh one
                picture = replace(picture, warnings=(*picture.warnings, f"the SDK: {made['doubt']}"))
        finally:
            reel.close()
            for link in (audio, video):
                Path(link).unlink(missing_ok=True)
            self._room.sweep()
        about = {**picture.about, "sdk_seconds": round(time.monotonic() - begun, 3)}
        return replace(picture, about=about)

    def _link(self, code: str, path: Path) -> str:
        folder = self._guest.folder / "in"
        folder.mkdir(exist_ok=True)
        ending = path.suffix if path.suffix[1:].isalnum() else ""
        link = folder / f"{code}-{len(list(folder.iterdir()))}{ending}"
        link.symlink_to(path)
        return str(link)

    def fingerprint(self) -> str:
        """Of the names, sizes and dates of the SDK's files."""
        folder, sha = self._options.folder, hashlib.sha256()
        for path in sorted(folder.glob("**/*")):
            inside = path.relative_to(folder)
            if inside.parts[0] not in _WRITTEN and path.is_file():
                about = path.stat()
                sha.update(f"{inside} {about.st_size} {about.st_mtime_ns}\n".encode())
        return sha.hexdigest()[:16]

    def warmup(self) -> None:
        """The first second of a real clip: the SDK starts its processes and loads its models with its first job.

        Without a clip that is not done, and the first job takes longer.
        """
        clip = self._options.warmup or tuple(self._options.folder / name for name in EXAMPLE)
        audio, video = (Path(os.path.abspath(path.expanduser())) for path in clip)
        if not (audio.is_file() and video.is_file()):
            if self._options.warmup is not None:
                raise EngineError(
                    f"options.heygem.warmup: {audio} or {video} does not exist", hint="name a recording and a template"
                )
            print("heygem: no clip to warm up with: the first job takes longer (option `warmup`)", file=sys.stderr)
            return
        scratch = self._guest.folder / "warm"
        scratch.mkdir(exist_ok=True)
        try:
            sound, template = scratch / "audio.wav", scratch / "video.mp4"
            _cut(audio, sound, {"acodec": "pcm_s16le", "vn": None}, self._ffmpeg)
            _cut(video, template, {"vcodec": "libx264", "pix_fmt": "yuv420p", "an": None}, self._ffmpeg)
            asked = {"audio": str(sound), "video": str(template), "chaofen": self._options.chaofen, "pn": 1}
            self._guest.run(asked, _Quiet(scratch), _Thrown(scratch / FRAMES).take)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def close(self) -> None:
        """End the SDK and all its processes."""
        self._guest.close()


@dataclass(frozen=True)
class Room:
    """The folder that the SDK works in: links to its own, but for its settings and what it writes."""

    place: Path
    folders: Mapping[str, str]  #: temp, result, log
    programs: Path | None  #: where an `ffmpeg` is, when the machine has none

    @classmethod
    def make(cls, folder: Path, options: HeyGemOptions, ffmpeg: str | None) -> Room:
        """A room in ``folder``."""
        place, sdk = folder / "sdk", options.folder
        place.mkdir()
        folders = {}
        for name in _WRITTEN:
            (place / name).mkdir()
            folders[name] = str(place / name)
        for entry in sdk.iterdir():
            if entry.name != "config" and not (place / entry.name).exists():
                (place / entry.name).symlink_to(entry)
        (place / "config").mkdir()
        for entry in (sdk / "config").iterdir() if (sdk / "config").is_dir() else ():
            if entry.name != "config.ini":
                (place / "config" / entry.name).symlink_to(entry)
        (place / "config" / "config.ini").write_text(
            settings(sdk / "config" / "config.ini", folders, options.batch_size), "utf-8"
        )
        programs = None
        if shutil.which("ffmpeg", path=options.env.get("PATH", os.environ.get("PATH"))) is None:
            programs = folder / "bin"
            programs.mkdir()
            (programs / "ffmpeg").symlink_to(media.ffmpeg_binary(ffmpeg))
        return cls(place, folders, programs)

    def sweep(self) -> None:
        """Remove what a job left, that of one which was killed included."""
        for name in ("temp", "result"):
            for left in Path(self.folders[name]).iterdir():
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)

    def home(self, home: Home) -> Home:
        """The same home, in this room."""
        env = dict(home.env)
        if self.programs is not None:
            env["PATH"] = os.pathsep.join((str(self.programs), env.get("PATH", os.environ.get("PATH", os.defpath))))
        # Its compiled modules know themselves by their bare names, so each folder of some is searched too.
        own = (self.place, self.place / "service", self.place.parent)
        return replace(home, folder=self.place, path=(*own, *home.path), env=env)


class Reel:
    """The frames of one job, from the guest's files into a video."""

    def __init__(self, shot: Shot) -> None:
        self._shot, self._place = shot, shot.context.scratch / FRAMES
        self._writer: VideoWriter | None = None
        self._size = (0, 0)
        self._fps, self._expected, self._next = 0.0, 1, 0
        self._prepared = 0.0

    def take(self) -> bool:
        """Encode what has come since; whether anything had."""
        if self._writer is None and not self._begin():
            return False
        taken = False
        while (file := next(iter(self._place.glob(f"{self._next:06}-*.bgr")), None)) is not None:
            self._encode(file)
            file.unlink()
            self._next, taken = self._next + 1, True
        return taken

    def _begin(self) -> bool:
        about = self._place / "begin.json"
        if not about.exists():
            return False
        said = json.loads(about.read_bytes())
        self._size, self._fps = (int(said["width"]), int(said["height"])), float(said["fps"])
        if min(self._size) < 2 or not 1 <= self._fps <= 240:
            raise EngineError(f"heygem: the SDK makes {self._size[0]}×{self._size[1]} at {self._fps:g} frames a second")
        even = (self._size[0] // 2 * 2, self._size[1] // 2 * 2)
        encoding = self._shot.encoding(*even, self._fps)
        self._writer = VideoWriter(self._shot.picture, encoding, self._shot.check)
        self._expected = max(1, round(self._shot.seconds * self._fps))
        self._prepared = time.monotonic()
        self._shot.begin("inference", f"{self._expected} frames")
        return True

    def _encode(self, file: Path) -> None:
        assert self._writer is not None
        width, height = self._size
        frames = np.fromfile(file, np.uint8).reshape(-1, height, width, 3)
        for frame in frames:
            self._writer.write(np.ascontiguousarray(frame[: self._writer.height, : self._writer.width]))
            self._shot.part(self._writer.frames, self._expected)

    def finish(self, frames: int) -> Picture:
        """The finished picture. frames: how many the SDK says it made."""
        writer = self._writer
        if writer is None or not frames:
            raise EngineError("heygem: the SDK said that it was done, but made no frames")
        if writer.frames != frames:
            raise EngineError(f"heygem: the SDK made {frames} frames, of which {writer.frames} arrived")
        writer.close()
        self._writer = None
        warnings = [writer.note] if writer.note else []
        if abs(frames - self._expected) > max(2, self._fps / 5):
            warnings.append(f"the SDK made {frames} frames for {self._expected} frames of sound")
        part = Part(writer.path, frames / self._fps)
        about = {"template_frames": self._shot.info.frames}
        return Picture(
            parts=[part],
            width=writer.width,
            height=writer.height,
            fps=self._fps,
            frames=frames,
            codec=writer.codec,
            about=about,
            prepared=self._prepared,
            warnings=tuple(warnings),
        )

    def close(self) -> None:
        """End the encoder, if it was not finished."""
        if self._writer is not None:
            self._writer.abort()
            self._writer = None


class _Named:
    """A context under another id: the SDK names its files by it, and must never see one twice."""

    def __init__(self, context: Context, code: str, check: Any) -> None:
        self.job_id, self.attempt, self.scratch = code, context.attempt, context.scratch
        self.check, self.partial = check, context.partial

    def progress(self, status: str, percent: float, message: str = "") -> None:
        """Not told: the steps of the engine do that."""


class _Quiet:
    """A context for the warm-up, which nobody asked for."""

    job_id, attempt = "filepoolwarmup", 1

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch

    def check(self) -> None:
        """Nobody can cancel it."""

    def progress(self, status: str, percent: float, message: str = "") -> None:
        """Nobody waits for it."""

    def partial(self, record: Mapping[str, object]) -> None:
        """There is none."""


class _Thrown:
    """Frames of the warm-up: taken, so that the SDK goes on, and thrown away."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def take(self) -> bool:
        """Whether any had come."""
        files = list(self._place.glob("*.bgr"))
        for file in files:
            file.unlink()
        return bool(files)


def _code(context: Context) -> str:
    """What the SDK names the files and log lines of one attempt by: like the job's id, never twice the same."""
    return f"{re.sub('[^A-Za-z0-9]', '', context.job_id)[:40]}x{context.attempt}x{secrets.token_hex(4)}"


def home_of(options: HeyGemOptions) -> Home:
    """Where the SDK lives, before it has a room of its own."""
    home = options.home(SDK)
    path = (*home.path, options.folder / "service", options.folder.parent)
    return replace(home, path=path, name="the HeyGem SDK")


def diagnose(options: Options) -> Iterator[Finding]:
    """Look at the interpreter and the SDK without starting it."""
    chosen = _chosen(options)
    home = home_of(chosen)
    _require_sdk(chosen.folder)
    found = list(probe.examine(home, [MODULE]))
    if any(not finding.ok and MODULE in finding.check for finding in found):
        found = list(probe.examine(home, [*PACKAGES, MODULE]))  # an import stops at the first that is missing
    yield from found
    shm = os.statvfs("/dev/shm") if os.path.isdir("/dev/shm") else None
    if shm is not None:
        size = shm.f_frsize * shm.f_blocks >> 20
        yield Finding("sdk shm", True, f"/dev/shm has {size} MiB; frames go through files, not through it")


def settings(path: Path, folders: Mapping[str, str], batch: int | None) -> str:
    """A config.ini like the one at ``path``, with folders of our own and nothing that deletes."""
    parser = configparser.RawConfigParser()
    parser.read(path, encoding="utf-8")
    ours: dict[str, dict[str, str]] = {
        "log": {"log_dir": folders["log"], "log_file": "dh.log"},
        "temp": {"temp_dir": folders["temp"], "clean_switch": "0"},
        "result": {"result_dir": folders["result"], "clean_switch": "0"},
        "register": {"enable": "0"},
        "digital": {} if batch is None else {"batch_size": str(batch)},
    }
    for section, values in ours.items():
        if values and not parser.has_section(section):
            parser.add_section(section)
        for name, value in values.items():
            parser.set(section, name, value)
    text = io.StringIO()
    parser.write(text)
    return text.getvalue()


def _chosen(options: Options) -> HeyGemOptions:
    if options.heygem is None:
        raise EngineError(
            "backend heygem needs the option `heygem`",
            hint='{"backend": "heygem", "heygem": {"python": "/opt/py38/bin/python", "sdk": "/opt/heygem"}}',
        )
    return options.heygem


def _require_sdk(folder: Path) -> None:
    service = folder / "service"
    if not any(service.glob("trans_dh_service*")):
        raise EngineError(
            f"options.heygem.sdk: {folder} holds no {MODULE} (no service/trans_dh_service*.so)",
            hint="name the folder in which run.py and config/ of the SDK lie",
        )


def _cut(source: Path, target: Path, codec: Mapping[str, object], ffmpeg: str | None) -> None:
    """The first second of a file."""
    import ffmpeg as builder

    arguments = (
        builder.input(f"file:{source}", protocol_whitelist=media.LOCAL_PROTOCOLS)
        .output(f"file:{target}", t=WARMUP_S, **codec)
        .global_args("-nostdin", "-hide_banner", "-loglevel", "error", "-y")
        .compile(cmd=media.ffmpeg_binary(ffmpeg))
    )
    process = Process(arguments, "wait")
    try:
        if process.finish() != 0:
            raise EngineError(f"options.heygem.warmup: {source} cannot be read: {process.said}")
    finally:
        process.close()
