"""The ``wav2lip`` backend: a published generator paints the lower half of the face.

What the network sees is what its authors' own inference shows it: the face's box scaled to its size, BGR in
0..1, lower half black, the whole face behind it; 0.2 s of mel spectrogram beginning with the frame. What it
paints is laid over the lower face with a soft edge, so the rest of the frame stays the template's own.
The public weights were trained on LRS2 and are not for commercial use.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from inference import cuda, weights
from inference.audio import Array
from inference.base import EngineError
from inference.encode import Frame
from inference.face import filters, mesh
from inference.lipsync import wav2lip_model
from inference.lipsync.params import INSTALLED_WAV2LIP, Options
from inference.lipsync.wav2lip_model import MEL_BANDS, MEL_FRAMES
from inference.lipsync.work import Work

RATE, HOP, N_FFT = 16_000, 200, 800  #: Hz, samples; 80 mel frames per second
MEL_RATE = RATE / HOP
LOW_HZ, HIGH_HZ = 55.0, 7600.0  #: range of the bands
PREEMPHASIS = 0.97
FLOOR_DB, REFERENCE_DB, PEAK = -100.0, 20.0, 4.0  #: decibels are mapped to −4 … 4
MEL_BLOCK = 4000  #: mel frames worked on at a time

CHIN_PAD = 0.05  #: share of the box's height added below the chin
BOX_FRAMES = 5  #: frames over which boxes are averaged
FEATHER = 0.06  #: share of the box's width over which the painted part fades
BATCH_CPU, BATCH_GPU = 8, 64


class Wav2Lip:
    """A loaded generator. Threads share it and take turns."""

    def __init__(self, checkpoint: Path, device: str, batch: int = 0) -> None:
        cuda.require(device)
        self.device = device
        with cuda.guarded(device, f"the weights of {checkpoint}"):
            self.network = wav2lip_model.load(checkpoint, device)
        self.side = self.network.family.side  #: pixels
        self.batch = batch or (BATCH_GPU if cuda.is_gpu(device) else BATCH_CPU)
        self._lock = threading.Lock()

    def paint(self, faces: NDArray[np.uint8], sounds: Array) -> NDArray[np.uint8]:
        """(B, side, side, 3) BGR faces and (B, 16, 80) mel → the same faces speaking.

        Where memory is short for all at once, half as many are tried, down to one; later batches are that small.
        """
        what = f"face(s) of {self.side}×{self.side}"
        parts = cuda.in_batches(
            lambda span: self._paint(faces[span], sounds[span]), len(faces), self.device, what, self._shrink
        )
        return np.concatenate(parts)

    def _shrink(self, batch: int) -> None:
        self.batch = min(self.batch, batch)

    def _paint(self, faces: NDArray[np.uint8], sounds: Array) -> NDArray[np.uint8]:
        whole = torch.from_numpy(faces).to(self.device).permute(0, 3, 1, 2).float() / 255
        hidden = whole.clone()
        hidden[:, :, self.side // 2 :] = 0
        sound = torch.from_numpy(np.ascontiguousarray(sounds.transpose(0, 2, 1))).to(self.device)[:, None]
        with self._lock, torch.inference_mode():
            out = self.network(sound, torch.cat((hidden, whole), dim=1))
            return np.asarray((out * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy())

    def warmup(self) -> None:
        """One pass, so that the first job meets no first-call cost."""
        self.paint(np.zeros((1, self.side, self.side, 3), np.uint8), np.zeros((1, MEL_FRAMES, MEL_BANDS), np.float32))


class Wav2LipBackend:
    """A generator of the user's, loaded once."""

    def __init__(self, options: Options, device: str) -> None:
        self._checkpoint = options.checkpoint.expanduser() if options.checkpoint is not None else _installed()
        self._model = Wav2Lip(self._checkpoint, device, options.batch)

    def painter(self, work: Work) -> Callable[[int, int], Wav2LipPainter]:
        """What paints output frames start to stop."""
        mel = mel_spectrogram(work.samples)
        seen = work.analysis
        return lambda start, stop: Wav2LipPainter(
            self._model, seen.points, seen.clear, shot=seen.shot, order=work.order, mel=mel, fps=work.info.fps
        )

    def files(self) -> list[Path]:
        """Every file of weights in use."""
        return [self._checkpoint]

    def warmup(self) -> None:
        """One pass, so that the first job meets no first-call cost."""
        self._model.warmup()

    def close(self) -> None:
        """Nothing to end."""


def _installed() -> Path:
    """The weights that ``python -m inference.weights install wav2lip`` brings."""
    try:
        return weights.find(INSTALLED_WAV2LIP)
    except weights.WeightError as error:
        raise EngineError(
            f"backend wav2lip needs a checkpoint: {error}",
            hint="python -m inference.weights install wav2lip (not for commercial use), or name one in the options: "
            '{"backend": "wav2lip", "checkpoint": "/path/wav2lip_gan.pth"}',
        ) from error


class Wav2LipPainter:
    """Paints one segment (a :class:`inference.lipsync.pipeline.Painter`)."""

    def __init__(
        self,
        model: Wav2Lip,
        points: mesh.Points,
        found: NDArray[np.bool_],
        *,
        shot: NDArray[np.int32],
        order: NDArray[np.int32],
        mel: Array,
        fps: float,
    ) -> None:
        self.batch = model.batch
        self._model, self._points, self._found, self._order = model, points, found, order
        self._boxes = boxes(points, found, shot)
        self._mel, self._fps = mel, fps

    def paint(self, frames: Sequence[Frame], outputs: Sequence[int]) -> list[Frame]:
        """The finished frames; those without a face as they are."""
        result = list(frames)
        places, faces, sounds = [], [], []
        for place, (frame, output) in enumerate(zip(frames, outputs, strict=True)):
            index = int(self._order[output])
            box = self._inside(frame, index)
            if box is None:
                continue
            left, top, right, bottom = box
            places.append((place, index, box))
            faces.append(_scaled(frame[top:bottom, left:right], (self._model.side, self._model.side)))
            sounds.append(window(self._mel, output / self._fps))
        if places:
            painted = self._model.paint(np.stack(faces), np.stack(sounds))
            for (place, index, box), face in zip(places, painted, strict=True):
                result[place] = self._laid(frames[place], index, box, face)
        return result

    def _inside(self, frame: Frame, index: int) -> tuple[int, int, int, int] | None:
        """Left, top, right, bottom of the face's box inside the frame; None when there is no face to speak of."""
        if not self._found[index]:
            return None
        height, width = frame.shape[:2]
        left, top, right, bottom = (int(edge) for edge in self._boxes[index].round())
        left, top, right, bottom = max(0, left), max(0, top), min(width, right), min(height, bottom)
        return (left, top, right, bottom) if right - left >= 16 and bottom - top >= 16 else None

    def _laid(self, frame: Frame, index: int, box: tuple[int, int, int, int], face: Frame) -> Frame:
        left, top, right, bottom = box
        size = (right - left, bottom - top)
        mask = _mask(self._points[index, mesh.OVAL, :2] - (left, top), size)
        region = frame[top:bottom, left:right].astype(np.float32)
        change = (_scaled(face, size).astype(np.float32) - region) * mask[..., None]
        result: Frame = frame.copy()
        result[top:bottom, left:right] = np.clip(region + change + 0.5, 0, 255).astype(np.uint8)
        return result


def boxes(points: mesh.Points, found: NDArray[np.bool_], shot: NDArray[np.int32]) -> Array:
    """(N, 4) left, top, right, bottom of the face in every frame, averaged within its shot; NaN without a face."""
    oval = points[:, mesh.OVAL, :2]
    low, high = oval.min(axis=1), oval.max(axis=1)
    high[:, 1] += CHIN_PAD * (high[:, 1] - low[:, 1])
    edges = np.where(found[:, None], np.concatenate([low, high], axis=1), np.nan).astype(np.float32)
    return np.asarray(filters.local_mean(edges, shot, BOX_FRAMES), np.float32)


def mel_spectrogram(samples: Array) -> Array:
    """(T, 80) of 16 kHz samples, 80 frames a second, values −4 … 4: the front end the generator was trained with."""
    if len(samples) < N_FFT:
        samples = np.pad(samples, (0, N_FFT - len(samples)))
    sharp = np.append(samples[:1], samples[1:] - PREEMPHASIS * samples[:-1]).astype(np.float32)
    padded = np.pad(sharp, N_FFT // 2, mode="reflect")
    count = 1 + len(sharp) // HOP
    hann = np.hanning(N_FFT + 1)[:-1].astype(np.float32)
    views = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP][:count]
    filters = _filters()
    result = np.empty((count, MEL_BANDS), np.float32)
    floor = 10 ** (FLOOR_DB / 20)
    for start in range(0, count, MEL_BLOCK):
        magnitude = np.abs(np.fft.rfft(views[start : start + MEL_BLOCK] * hann, axis=1)) @ filters.T
        decibels = 20 * np.log10(np.maximum(floor, magnitude)) - REFERENCE_DB
        result[start : start + MEL_BLOCK] = np.clip(2 * PEAK * (decibels - FLOOR_DB) / -FLOOR_DB - PEAK, -PEAK, PEAK)
    return result


def window(mel: Array, at_s: float) -> Array:
    """(16, 80) the piece of sound that belongs to a moment; the last one there is near the end."""
    start = min(int(at_s * MEL_RATE + 1e-6), len(mel) - MEL_FRAMES)
    if start < 0:
        return np.pad(mel, ((0, MEL_FRAMES - len(mel)), (0, 0)), mode="edge")
    return np.asarray(mel[start : start + MEL_FRAMES], np.float32)


def _filters() -> NDArray[np.float64]:
    """(80, 401) triangles of unit area on Slaney's mel scale between LOW_HZ and HIGH_HZ."""
    step, corner = 200 / 3, 1000.0
    octave = np.log(6.4) / 27

    def to_mel(hertz: float) -> float:
        return hertz / step if hertz < corner else corner / step + float(np.log(hertz / corner)) / octave

    mels = np.linspace(to_mel(LOW_HZ), to_mel(HIGH_HZ), MEL_BANDS + 2)
    hertz = np.where(mels < corner / step, mels * step, corner * np.exp((mels - corner / step) * octave))
    bins = np.arange(N_FFT // 2 + 1) * RATE / N_FFT
    triangles = [np.interp(bins, hertz[k : k + 3], (0, 2 / (hertz[k + 2] - hertz[k]), 0)) for k in range(MEL_BANDS)]
    return np.stack(triangles)


def _mask(oval: Array, size: tuple[int, int]) -> Array:
    """(H, W) 0..1: the lower part of the face inside its box, with a soft edge that ends within the box."""
    width, height = size
    edge = max(2, round(FEATHER * width))
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [oval.round().astype(np.int32)], 255)
    mask[: height // 2] = 0
    mask[:, :edge] = mask[:, width - edge :] = 0
    mask[height - edge :] = 0
    soft = cv2.GaussianBlur(cv2.erode(mask, np.ones((edge, edge), np.uint8)), (0, 0), edge / 2.5)
    return np.asarray(soft / np.float32(255), np.float32)


def _scaled(picture: Frame, size: tuple[int, int]) -> Frame:
    shrinks = picture.shape[1] > 2 * size[0] or picture.shape[0] > 2 * size[1]
    return np.asarray(
        cv2.resize(picture, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR), np.uint8
    )
