"""How a head moves while its owner speaks: turns, nods, breath, blinks and eyes, made up from a seed.

Four things add up to the pose: a slow drift, re-orientations now and then (a minimum-jerk turn to a new pose,
preferably where a phrase begins), a nod on stressed syllables, and breath. The eyes stay on the viewer while
the head turns, with small fixation changes. Blinks close faster than they open and like to go with a turn.

Each part draws from a generator of its own, so a longer video begins like a shorter one with the same seed.
Angles in degrees as :mod:`inference.face.pose` counts them, lengths in eye distances, times in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Curve = NDArray[np.float64]

LIMITS = (4.0, 3.0, 2.5)  #: degrees of yaw, pitch, roll that are never passed
DRIFT = (1.0, 0.65, 0.6)  #: standard deviation of the drift, degrees
DRIFT_S = 0.9  #: its smoothness: σ of the Gaussian over white noise
TURN = (1.7, 0.8, 0.9)  #: standard deviation of where a re-orientation leads, degrees
TURN_EVERY = (1.5, 4.2)
TURN_TAKES = (0.40, 0.85)
ONSET_REACH = 0.45  #: how far a turn is moved to fall on the beginning of a phrase
NOD = 3.0  #: degrees of pitch downwards per unit of stress
BROW = 1.6  #: raised brow per unit of stress, cut to 0..1
BREATH = 0.010  #: eye distances
BREATH_HZ = (0.22, 0.30)
BLINK_EVERY = (2.0, 6.0)
BLINK_FIRST = (0.9, 2.6)
BLINK_CLOSE, BLINK_OPEN = (0.075, 0.105), (0.17, 0.24)  #: how long a lid takes down and up
BLINK_HOLD = (0.03, 0.06)
GLANCE_EVERY = (0.5, 2.4)
GLANCE = (0.7, 0.45)  #: degrees, standard deviation of yaw and pitch of the eyes around the viewer
COUNTER_ROLL = 0.85  #: share of a turn of the head that the eyes take back
SETTLE = 0.8  #: seconds from the pose of the picture into the motion

QUIET_DB = 30.0  #: this far below its loud moments a voice counts as silent


@dataclass(frozen=True)
class Motion:
    """One row per frame."""

    angles: Array  #: (T, 3) yaw, pitch, roll away from the picture's own pose, degrees
    breath: Array  #: (T,) −1..1 times BREATH: chest up
    blink: Array  #: (T,) 0 open … 1 shut
    brow: Array  #: (T,) 0..1 raised
    gaze: Array  #: (T, 2) yaw, pitch of the eyes within the head, degrees

    @property
    def frames(self) -> int:
        """How many frames it lasts."""
        return len(self.blink)

    def scaled(self, share: float) -> Motion:
        """The same with a head that moves less, 0..1; lids, breath and glances stay."""
        gain = np.float32(share)
        kept = self.gaze + COUNTER_ROLL * (1 - gain) * self.angles[:, :2]
        return replace(self, angles=gain * self.angles, brow=gain * self.brow, gaze=kept.astype(np.float32))


def loudness(samples: Array, rate: int, fps: float, frames: int) -> Array:
    """(frames,) 0 silent … 1 loud for this recording; 40 ms windows centred on the frames."""
    if frames == 0 or len(samples) == 0:
        return np.zeros(frames, np.float32)
    power = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    centre = (np.arange(frames) + 0.5) * rate / fps
    low = np.clip(np.round(centre - rate * 0.02), 0, len(samples)).astype(int)
    high = np.clip(np.round(centre + rate * 0.02), 0, len(samples)).astype(int)
    mean = (power[high] - power[low]) / np.maximum(high - low, 1)
    level = 10 * np.log10(np.maximum(mean, 1e-12))
    top = max(float(np.percentile(level, 95)), -55.0)  # digital noise is no speech
    return np.asarray(np.clip((level - top + QUIET_DB) / QUIET_DB, 0, 1), np.float32)


def generate(frames: int, fps: float, seed: int, loud: Array) -> Motion:
    """The motion of a head over ``frames`` frames while its voice is as loud as ``loud`` (frames,)."""
    parts = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(6)]
    at = np.arange(frames) / fps
    voice = _smooth(loud.astype(np.float64), 2.8 * fps / 25)
    stress = np.clip(voice - _smooth(voice, 14.0 * fps / 25), -0.5, 0.5)
    lively = 0.6 + 0.4 * _smooth(np.minimum(voice * 2, 1), 12.0 * fps / 25)
    turns = _turn_times(at, voice, parts[0])
    pose = _drift(frames, fps, parts[1]) * lively[:, None] + _turns(at, turns, parts[0])
    mood = 1 + 0.6 * _noise(frames, fps, 1.6, parts[2])  # some phrases are nodded to, others not
    pose[:, 1] -= NOD * np.clip(mood, 0, 2) * stress
    limits = np.array(LIMITS)
    settle = _smoothstep(at / SETTLE)[:, None]
    pose = settle * limits * np.tanh(_smooth(pose, 1.2 * fps / 25) / limits)
    brow = np.clip(BROW * np.clip(mood, 0, 2) * np.maximum(stress - 0.08, 0), 0, 1) * settle[:, 0]
    gaze = -COUNTER_ROLL * pose[:, :2] + _glances(at, parts[3]) * settle
    return Motion(
        angles=pose.astype(np.float32),
        breath=(_breath(at, parts[4]) * settle[:, 0]).astype(np.float32),
        blink=_blinks(at, turns, parts[5]).astype(np.float32),
        brow=_smooth(brow, 2.0 * fps / 25).astype(np.float32),
        gaze=gaze.astype(np.float32),
    )


def _drift(frames: int, fps: float, rng: np.random.Generator) -> Curve:
    return np.stack([size * _noise(frames, fps, DRIFT_S, rng.spawn(1)[0]) for size in DRIFT], axis=1)


def _noise(frames: int, fps: float, sigma_s: float, rng: np.random.Generator) -> Curve:
    """(frames,) smooth noise of standard deviation 1."""
    sigma = sigma_s * fps
    reach = int(np.ceil(3.5 * sigma))
    white = rng.standard_normal(frames + 2 * reach)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return np.convolve(white, kernel / np.linalg.norm(kernel), mode="valid")[:frames]


def _turn_times(at: Curve, voice: Curve, rng: np.random.Generator) -> Curve:
    """When re-orientations begin; near the beginning of a phrase they wait for it."""
    end = at[-1] if len(at) else 0.0
    rise = np.flatnonzero((voice[1:] > 0.3) & (voice[:-1] <= 0.3)) + 1
    onsets = at[rise]
    times: list[float] = []
    now = float(rng.uniform(0.4, 1.6))
    while now < end:
        near = onsets[np.abs(onsets - now) < ONSET_REACH]
        if len(near):
            now = float(near[np.abs(near - now).argmin()])
        if not times or now > times[-1] + 1.0:
            times.append(now)
        now += float(rng.uniform(*TURN_EVERY))
    return np.array(times)


def _turns(at: Curve, times: Curve, rng: np.random.Generator) -> Curve:
    """(T, 3) poses that jump between targets by minimum jerk."""
    rng = rng.spawn(1)[0]
    pose = np.zeros((len(at), 3))
    last = np.zeros(3)
    for time in times:
        # A pull to the middle keeps the head from staying turned away.
        target = rng.standard_normal(3) * np.array(TURN) - 0.25 * last
        s = np.clip((at - time) / rng.uniform(*TURN_TAKES), 0, 1)
        pose += (s**3 * (10 - 15 * s + 6 * s**2))[:, None] * (target - last)
        last = target
    return pose


def _glances(at: Curve, rng: np.random.Generator) -> Curve:
    """(T, 2) where the eyes rest; they jump between fixations within a frame."""
    gaze = np.zeros((len(at), 2))
    now, end = float(rng.uniform(*GLANCE_EVERY)), at[-1] if len(at) else 0.0
    while now < end:
        gaze[at >= now] = rng.standard_normal(2) * np.array(GLANCE)
        now += float(rng.uniform(*GLANCE_EVERY))
    return gaze


def _breath(at: Curve, rng: np.random.Generator) -> Curve:
    """(T,) chest height −1..1: in over two fifths of a breath, out over the rest."""
    result = np.zeros(len(at))
    now, end = -float(rng.uniform(0, 3)), at[-1] if len(at) else 0.0
    while now <= end:
        length = 1 / float(rng.uniform(*BREATH_HZ))
        s = (at - now) / length
        inside = (s >= 0) & (s < 1)
        rise, fall = _smoothstep(s / 0.4), _smoothstep((s - 0.4) / 0.6)
        result[inside] = (2 * (rise - fall) - 1)[inside]
        now += length
    return result


def _blinks(at: Curve, turns: Curve, rng: np.random.Generator) -> Curve:
    """(T,) how far the lids are down."""
    result = np.zeros(len(at))
    end = at[-1] if len(at) else 0.0
    low, high = BLINK_EVERY
    before, now = -np.inf, float(rng.uniform(*BLINK_FIRST))
    while now < end:
        near = turns[(np.abs(turns - now) < 0.7) & (turns - before >= low) & (turns - before <= high)]
        if len(near) and before > 0:
            now = float(near[0])
        down, hold, up = (float(rng.uniform(*span)) for span in (BLINK_CLOSE, BLINK_HOLD, BLINK_OPEN))
        s = at - now
        lid = _smoothstep(s / down) - _smoothstep((s - down - hold) / up)
        result = np.maximum(result, lid * float(rng.uniform(0.94, 1.0)))
        before = now
        now += low + (high - low) * float(rng.beta(1.5, 2.2))
    return result


def _smooth(values: Curve, sigma: float) -> Curve:
    """Gaussian along the first axis, ends held."""
    reach = max(1, int(np.ceil(3 * sigma)))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    if not len(values):
        return values
    flat = values.reshape(len(values), -1)
    padded = np.pad(flat, ((reach, reach), (0, 0)), mode="edge")
    columns = [np.convolve(padded[:, k], kernel, mode="valid") for k in range(flat.shape[1])]
    return np.stack(columns, axis=1).reshape(values.shape)


def _smoothstep(value: Curve) -> Curve:
    t = np.clip(value, 0, 1)
    return t * t * (3 - 2 * t)
