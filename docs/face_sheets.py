"""Talking faces of many kinds on contact sheets, with the frames that came out worst.

    python docs/face_sheets.py                          # docs/images/faces-*.jpg, four minutes on two cores
    python docs/face_sheets.py --media FOLDER           # and FOLDER's own templates, into --out

Each sheet shows five moments and the three worst frames by `python -m inference.evaluate --worst`: the template's
above, the video's below. The templates are made of the paintings in examples/portrait, which are in the public domain.
FOLDER may hold others (smiling.mp4, glasses.mp4 …); whether their sheets may be published is up to their licence, so
they go elsewhere.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from inference import console  # noqa: E402
from inference.base import LocalContext  # noqa: E402
from inference.evaluate import Report, evaluate  # noqa: E402
from inference.evaluate_sheet import SIDE  # noqa: E402
from inference.lipsync import LipSync  # noqa: E402
from inference.media import ffmpeg_binary  # noqa: E402
from inference.portrait import Portrait  # noqa: E402

PAINTINGS, SPEECH = PROJECT / "examples" / "portrait", PROJECT / "examples" / "speech"
SECONDS, TEMPLATE_S = 6, 4  #: of what is said, and of a template that is made here
SIZE = (1280, 720)  #: pixels of the frame that holds a small face
SMALL = 300  #: pixels of its picture's height
CELL = (2 * SIDE + 6, SIDE + 4)  #: height and width of a cell of a sheet, pixels
MOMENTS, COLUMNS = (1, 6, 11, 16, 21), 8  #: cells taken from the sheet of 24 moments, which has so many columns
WORST = 3
QUALITY = 78  #: of the JPEG files
GAP = 12  #: pixels between moments and worst frames
SUFFIXES = {".mp4", ".avi", ".mpg", ".mov", ".jpg", ".png"}


class Studio:
    """Makes templates and what they say, in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lipsync, self._portrait = LipSync(), Portrait()
        self._lipsync.load("cpu", {})
        self._portrait.load("cpu", {})
        self.said = self._sound("said.wav", SPEECH / "reading.flac", SECONDS)
        self._before = self._sound("before.wav", SPEECH / "address.flac", TEMPLATE_S)
        self._silence = folder / "silence.wav"
        self._ffmpeg("-f", "lavfi", "-i", "anullsrc=r=16000:cl=mono", "-t", TEMPLATE_S, self._silence)

    def painting(self) -> Path:
        """A picture as it is."""
        return PAINTINGS / "mona_lisa.jpg"

    def turned(self) -> Path:
        """A head turned aside."""
        return PAINTINGS / "girl_with_a_pearl_earring.jpg"

    def silent(self) -> Path:
        """A head that moves and says nothing."""
        return self._animated("silent", PAINTINGS / "la_velata.jpg", self._silence)

    def talking(self) -> Path:
        """A mouth that says something else."""
        return self._animated("talking", PAINTINGS / "lady_agnew.jpg", self._before)

    def small(self) -> Path:
        """A face of few pixels."""
        picture = cv2.imread(str(PAINTINGS / "lady_agnew.jpg"))
        scale = SMALL / picture.shape[0]
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        frame = np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)
        top, left = (SIZE[1] - picture.shape[0]) // 2, (SIZE[0] - picture.shape[1]) // 2
        frame[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        path = self._folder / "small.png"
        cv2.imwrite(str(path), frame)
        return path

    def shaded(self) -> Path:
        """A shadow that wanders over the face."""
        path = self._folder / "shaded.mp4"
        shade = f"lum='lum(X,Y)*(1-0.55/(1+exp((X-W*(0.2+0.6*T/{TEMPLATE_S}))/12)))':cb='cb(X,Y)':cr='cr(X,Y)'"
        self._ffmpeg("-i", self.silent(), "-vf", f"geq={shade}", "-crf", 12, path)
        return path

    def two_shots(self) -> Path:
        """Two people, and a cut between them."""
        path = self._folder / "two_shots.mp4"
        one = self._animated("one", PAINTINGS / "la_velata.jpg", self._before)
        other = self._animated("other", PAINTINGS / "girl_with_a_pearl_earring.jpg", self._silence)
        cut = ";".join(
            f"[{k}]trim=0:{TEMPLATE_S / 2},setpts=PTS-STARTPTS,scale=640:640:force_original_aspect_ratio=increase,"
            f"crop=640:640,setsar=1[p{k}]"
            for k in (0, 1)
        )
        self._ffmpeg("-i", one, "-i", other, "-filter_complex", f"{cut};[p0][p1]concat=n=2", "-an", "-crf", 12, path)
        return path

    def sheet(self, name: str, template: Path, target: Path) -> Report:
        """Have a template say it, measure that, and write its sheet."""
        video, moments, worst = (self._folder / f"{name}{end}" for end in ("-out.mp4", "-moments.png", "-worst.png"))
        job = {"video": str(template), "audio": str(self.said), "output": str(video)}
        with LocalContext(cache=self._folder / "cache") as context:
            result = self._lipsync.run(self._lipsync.check(job), context)
        for warning in result["warnings"]:
            print(f"  {warning}")
        report = evaluate(video, self.said, template, sheet_path=moments, worst_path=worst)
        _join(moments, worst, report, target)
        return report

    def _animated(self, name: str, picture: Path, audio: Path) -> Path:
        path = self._folder / f"{name}.mp4"
        if not path.exists():
            job = {"image": str(picture), "audio": str(audio), "output": str(path), "size": 640, "crf": 12}
            with LocalContext() as context:
                self._portrait.run(self._portrait.check(job), context)
        return path

    def _sound(self, name: str, source: Path, seconds: float) -> Path:
        path = self._folder / name
        self._ffmpeg("-i", source, "-t", seconds, path)
        return path

    def _ffmpeg(self, *arguments: object) -> None:
        subprocess.run([ffmpeg_binary(), "-v", "error", "-y", *map(str, arguments)], check=True)


def _join(moments: Path, worst: Path, report: Report, target: Path) -> None:
    """One row: some moments, then the worst frame by each of WORST measures, or more of the first measure's."""
    rows = sum(bool(seconds) for seconds in report.worst.values())
    places = [(row, 0) for row in range(min(rows, WORST))]
    places += [(0, column) for column in range(1, 1 + WORST - len(places))]
    all_moments, all_worst = cv2.imread(str(moments)), cv2.imread(str(worst))
    cells = [_cell(all_moments, *divmod(number, COLUMNS)) for number in MOMENTS]
    cells.append(np.full((CELL[0], GAP, 3), 255, np.uint8))
    cells += [_cell(all_worst, row, column) for row, column in places]
    target.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(target), np.hstack(cells), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])


def _cell(sheet: np.ndarray, row: int, column: int) -> np.ndarray:
    return sheet[row * CELL[0] : (row + 1) * CELL[0], column * CELL[1] : (column + 1) * CELL[1]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="one of the templates; may be repeated")
    parser.add_argument("--media", type=Path, metavar="FOLDER", help="templates of your own, named by what they show")
    parser.add_argument("--out", type=Path, default=PROJECT / "demo" / "faces", help="where their sheets go")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        studio = Studio(Path(folder))
        made: Mapping[str, Callable[[], Path]] = {
            name: getattr(studio, name)
            for name in ("painting", "silent", "talking", "turned", "small", "shaded", "two_shots")
        }
        images = PROJECT / "docs" / "images"
        templates = {name: (make, images / f"faces-{name}.jpg") for name, make in made.items()}
        for path in sorted(chosen.media.iterdir()) if chosen.media else ():
            if path.suffix in SUFFIXES:
                templates[f"own {path.stem}"] = (lambda path=path: path, chosen.out / f"faces-{path.stem}.jpg")
        for name, (make, target) in templates.items():
            if chosen.only and name not in chosen.only:
                continue
            report = studio.sheet(name, make(), target)
            teeth = f", teeth {report.teeth_stretch}" if report.teeth_stretch is not None else ""
            print(
                f"{name}: r {report.follows_r}, width r {report.width_r}, shut {report.closures}, flicker "
                f"{report.flicker}, seam {report.seam}, likeness {report.likeness}{teeth} -> {target.name}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    console.run(main)
