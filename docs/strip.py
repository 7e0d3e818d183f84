"""Frames of a video side by side, as one picture.

python docs/strip.py docs/images/talking.jpg demo/talking.mp4 --count 10 --rows 2 --side 200
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from inference.video import probe_video, read_frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("video", type=Path)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--side", type=int, default=200, help="width of a frame in pixels")
    parser.add_argument("--crop", type=float, nargs=4, default=(0, 0, 1, 1), help="left, top, right, bottom; shares")
    chosen = parser.parse_args()
    info = probe_video(chosen.video)
    wanted = set(np.linspace(0, info.frames - 1, chosen.count + 2).round().astype(int)[1:-1].tolist())
    cells = []
    for number, frame in enumerate(read_frames(info)):
        if number in wanted:
            height, width = frame.shape[:2]
            left, top, right, bottom = chosen.crop
            part = frame[int(top * height) : int(bottom * height), int(left * width) : int(right * width)]
            size = (chosen.side, round(chosen.side * part.shape[0] / part.shape[1]))
            cells.append(cv2.resize(part, size, interpolation=cv2.INTER_AREA))
    across = -(-len(cells) // chosen.rows)
    cells += [np.zeros_like(cells[0])] * (across * chosen.rows - len(cells))
    rows = [np.hstack(cells[k * across : (k + 1) * across]) for k in range(chosen.rows)]
    chosen.picture.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(chosen.picture), np.vstack(rows), [cv2.IMWRITE_JPEG_QUALITY, 88])


if __name__ == "__main__":
    main()
