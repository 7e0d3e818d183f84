"""The HeyGem SDK as a guest: `TransDhTask` of `service.trans_dh_service`, with every silent end turned into a reason.

Its interface is that of the public extraction (github.com/Holasyb918/HeyGem-Linux-Python-Hack, CPython 3.8): it runs in
its own folder, starts processes with `spawn`, swallows exceptions into log/dh.log, and returns nothing. Frames come
out of a process of its own through `write_video`, a global of that module, in whose place `write_video` below stands:
it hands frames on as files and always answers.

Standard library only, and valid for Python 3.6; numpy is the SDK's own.
"""

import importlib
import multiprocessing
import os
import time
from typing import Any, Dict, List, Optional

from filepool_guest import Job, Sdk, get, put

MODULE = "service.trans_dh_service"
FRAMES = "frames"  # folder of a job, in its scratch
WAITING = 8  # files of frames that may lie there until the host has taken them
POLL_S = 0.01
_PLACE = "FILEPOOL_HEYGEM"  # environment variable: where write_video puts frames; its process inherits it
_LOG_LINES = 12


class HeyGem(Sdk):
    """Options: "temp", "result", "log": folders of this guest. Jobs: "audio", "video", "chaofen", "pn"."""

    def load(self, options: Dict[str, Any]) -> None:
        """Import the SDK and make its task. Its children start with the first job."""
        self._temp, self._result = options["temp"], options["result"]
        self._sweep("")  # what a guest that was killed left
        self._log = Log(os.path.join(options["log"], "dh.log"))
        multiprocessing.set_start_method("spawn", force=True)  # before anything of CUDA is touched
        self._service = importlib.import_module(MODULE)
        self._service.write_video = write_video  # type: ignore[attr-defined]
        self._task = self._service.TransDhTask()

    def doing(self) -> str:
        """The newest line of its log."""
        return self._log.last() if hasattr(self, "_log") else ""

    def run(self, params: Dict[str, Any], job: Job) -> Dict[str, Any]:
        """One video, as files of frames in `scratch`/frames; {"frames", "width", "height", "fps", "doubt"}.

        `doubt` says what went wrong in the SDK after all frames were there, "" for nothing.
        """
        place = os.path.join(job.scratch, FRAMES)
        os.makedirs(place, exist_ok=True)
        os.environ[_PLACE] = place
        self._log.begin()
        code = job.id
        self._task.task_dic[code] = ""
        try:
            self._task.work(params["audio"], params["video"], code, 0, 0, params["chaofen"], params["pn"])
            said = self._task.task_dic.get(code)
        finally:
            self._task.task_dic.pop(code, None)
            del os.environ[_PLACE]
            self._sweep(code)
        written = get(os.path.join(place, "end.json"))
        whole = written is not None and written["frames"] > 0 and not written["reason"]
        if not whole:
            raise HeyGemFailed(_reason(code, said, written, self._log))
        result = {name: written[name] for name in ("frames", "width", "height", "fps")}
        result["doubt"] = "" if _is_path(said) else _reason(code, said, written, self._log)
        return result

    def _sweep(self, code: str) -> None:
        """Remove what the job left in the folders of this guest."""
        for folder in (self._temp, self._result):
            for name in os.listdir(folder):
                path = os.path.join(folder, name)
                if name.startswith(code) and os.path.isfile(path):
                    os.remove(path)


class HeyGemFailed(Exception):
    """The SDK has made no video."""


class Log:
    """log/dh.log, from where a job began."""

    def __init__(self, path: str) -> None:
        self._path, self._from = path, 0

    def begin(self) -> None:
        """Lines from here on belong to the next job."""
        try:
            self._from = os.path.getsize(self._path)
        except OSError:
            self._from = 0

    def lines(self) -> List[str]:
        """What was logged since."""
        try:
            with open(self._path, "rb") as stream:
                stream.seek(self._from)
                return stream.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return []

    def last(self) -> str:
        """The newest line, "" for none."""
        lines = [line for line in self.lines() if line.strip()]
        return lines[-1] if lines else ""


def write_video(
    output_imgs_queue: Any,
    temp_dir: str,
    result_dir: str,
    work_id: str,
    audio_path: str,
    result_queue: Any,
    width: int,
    height: int,
    fps: float,
    *more: Any,
    **others: Any,
) -> None:
    """In place of the SDK's own, in a process that it starts: frames as files, and an answer in every case.

    The queue gives (state, reason, frames): frames is a list of (H, W, 3) BGR images; state True ends, False brings a
    reason. A file `000003-4.bgr` holds four frames. The host removes files as it takes them.
    """
    place = os.environ[_PLACE]
    count = 0
    reason = ""  # type: str
    try:
        put(os.path.join(place, "begin.json"), {"width": int(width), "height": int(height), "fps": float(fps)})
        number = 0
        while True:
            state, said, frames = output_imgs_queue.get()
            if state is True:
                break
            if state is False:
                reason = str(said or "").strip() or "the SDK stopped after %d frames and gave no reason" % count
                break
            _hand_on(place, number, frames, (height, width, 3))
            count, number = count + len(frames), number + 1
    except BaseException as error:
        reason = "write_video: %s: %s" % (type(error).__name__, error)
    about = {"frames": count, "width": int(width), "height": int(height), "fps": float(fps), "reason": reason}
    put(os.path.join(place, "end.json"), about)
    path = os.path.join(result_dir, "%s-r.mp4" % work_id)
    if not reason:
        open(path, "wb").close()  # the SDK looks whether it is there; the video itself is the host's work
    result_queue.put([False, reason] if reason else [True, path])


def _hand_on(place: str, number: int, frames: Any, shape: Any) -> None:
    """Write some frames as one file; wait while too many have not been taken."""
    while len([name for name in os.listdir(place) if name.endswith(".bgr")]) >= WAITING:
        time.sleep(POLL_S)
    path = os.path.join(place, "%06d-%d.bgr" % (number, len(frames)))
    with open(path + ".part", "wb") as stream:
        for frame in frames:
            if tuple(frame.shape) != tuple(shape) or str(frame.dtype) != "uint8":
                raise ValueError("a frame is %s %s instead of %s uint8" % (frame.shape, frame.dtype, shape))
            stream.write(frame.tobytes())
    os.replace(path + ".part", path)


def _is_path(said: Any) -> bool:
    return isinstance(said, (list, tuple)) and len(said) > 2 and bool(said[2])


def _reason(code: str, said: Any, written: Optional[Dict[str, Any]], log: Log) -> str:
    """Why there is no video; never empty."""
    parts = []
    if isinstance(said, (list, tuple)):
        parts += [str(each).strip() for each in said if isinstance(each, str) and each.strip()]
    elif said:
        parts.append(str(said))
    if written is None:
        parts.append("its writer has not finished: a process of the SDK died or stopped before the last frame")
    elif written["reason"]:
        parts.append(written["reason"])
    else:
        parts.append("all %d frames were made, but it did not get the answer of its writer" % written["frames"])
    logged = [line for line in log.lines() if "ERROR" in line or code in line][-_LOG_LINES:]
    if logged:
        parts.append("its log says:\n%s" % "\n".join(logged))
    return "; ".join(dict.fromkeys(parts))
