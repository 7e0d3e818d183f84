"""Sound as numbers: mel spectrograms and levels, in numpy.

All functions take mono float32 samples in -1.0 … 1.0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

BEYOND = 2.0  #: samples larger than this were written in another scale, or are damage
USUAL = 0.999  #: of the samples of a block are no damage
SILENCE_DBFS = -60.0  #: a recording whose loudest moment is below this is called silent


def mel_filters(sample_rate: int, n_fft: int, n_mels: int) -> Array:
    """Triangular filters on Slaney's mel scale, each of unit area: shape (n_mels, n_fft // 2 + 1).

    Linear below 1 kHz (200/3 Hz per mel), logarithmic above (27 steps per factor 6.4).
    """
    step, corner, log_step = 200.0 / 3.0, 1000.0, np.log(6.4) / 27.0
    top = corner / step + np.log(sample_rate / 2 / corner) / log_step
    mels = np.linspace(0.0, top, n_mels + 2)
    hertz = np.where(mels < corner / step, mels * step, corner * np.exp(log_step * (mels - corner / step)))
    bins = np.linspace(0.0, sample_rate / 2, n_fft // 2 + 1)
    rising = (bins - hertz[:-2, None]) / (hertz[1:-1] - hertz[:-2])[:, None]
    falling = (hertz[2:, None] - bins) / (hertz[2:] - hertz[1:-1])[:, None]
    area = 2.0 / (hertz[2:] - hertz[:-2])
    return np.asarray(np.maximum(0.0, np.minimum(rising, falling)) * area[:, None], dtype=np.float32)


def mel_spectrogram(samples: Array, filters: Array, n_fft: int, hop: int) -> Array:
    """Power in each mel band (not its logarithm): shape (frames, n_mels), one frame per ``hop`` samples.

    Frames are centred on multiples of ``hop``; the sound is continued with zeros at both ends.
    """
    padded = np.pad(samples, n_fft // 2)
    count = 1 + (len(padded) - n_fft) // hop
    window = np.hanning(n_fft + 1)[:-1].astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop][:count] * window
    spectrum = np.fft.rfft(frames, axis=1)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    return np.asarray(power @ filters.T, dtype=np.float32)


def level_dbfs(samples: Array) -> float:
    """Root-mean-square level in dB below full scale; -inf for digital silence."""
    if len(samples) == 0:
        return float("-inf")
    mean = float(np.mean(np.square(samples, dtype=np.float64)))
    return 10.0 * float(np.log10(mean)) if mean > 0 else float("-inf")


def mixed(frames: Array) -> Array:
    """The channels as one, (samples, channels) to (samples,); the loudest alone where they cancel each other.

    Their sum over √channels, which is how ffmpeg mixes stereo. A single one that sounds leaves 1 / channels of its
    power there; a quarter of that is too little for any other reason than that one is another upside down.
    """
    count = frames.shape[1]
    if count == 1:
        return frames[:, 0]
    mono = np.asarray(frames.sum(axis=1) / np.sqrt(count), dtype=np.float32)
    power = np.mean(np.square(frames, dtype=np.float64), axis=0)
    cancelled = np.mean(np.square(mono, dtype=np.float64)) < power.max() / (4 * count)
    return np.ascontiguousarray(frames[:, int(power.argmax())]) if cancelled else mono


def raised(samples: Array, target_dbfs: float) -> Array:
    """The same sound, made louder up to ``target_dbfs`` when it is quieter than that."""
    level = level_dbfs(samples)
    if not np.isfinite(level) or level >= target_dbfs:
        return samples
    return np.asarray(samples * 10.0 ** ((target_dbfs - level) / 20.0), dtype=np.float32)


class FullScale:
    """Brings what was written in another scale, such as numbers of 16 bits, to full scale; cuts off what stands out."""

    def __init__(self) -> None:
        self.factor, self.peak = 1.0, 0.0  #: of the latest block, and the largest sample of all

    def __call__(self, block: Array) -> Array:
        """A block of any shape, between -1 and 1 once something in it or before it was beyond ``BEYOND``."""
        sizes = np.abs(block)
        peak = float(sizes.max(initial=0.0))
        self.peak = max(self.peak, peak)
        if not self.beyond:
            return block
        if peak > BEYOND:
            self.factor = min(self.factor, 1.0 / max(1.0, float(np.quantile(sizes, USUAL))))
        return np.asarray(np.clip(block * self.factor, -1.0, 1.0), dtype=np.float32)

    @property
    def beyond(self) -> bool:
        """Whether anything was."""
        return self.peak > BEYOND

    @property
    def told(self) -> str:
        """What is to be told of it, "" when nothing is."""
        said = f"samples go beyond full scale, up to {self.peak:.3g}: they were made quieter or cut off"
        return said if self.beyond else ""
