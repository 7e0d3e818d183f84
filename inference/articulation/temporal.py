"""Training one temporal network of the head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.articulation.curve import CHANNELS
from inference.articulation.examples import SPEECH
from inference.articulation.fit import SAME_SAY, Item
from inference.articulation.head import CLOSED, SPEECH_LOGIT, Meta, Temporal
from inference.audio import Array


@dataclass(frozen=True)
class Training:
    """How it is trained."""

    steps: int = 300
    batch: int = 16
    crop: int = 60  #: frames
    rate: float = 2e-3
    decay: float = 1e-2
    noise: float = 0.3  #: added to the inputs, in their standard deviations
    correlation: float = 0.5  #: weight of 1 − r beside the squared error
    closure: float = 0.3  #: weight of the closure loss
    speech: float = 0.2  #: weight of the speech loss
    channels: tuple[float, ...] = (1.0, 0.7, 1.0, 0.5, 0.7)  #: weight of each
    silence: float = 0.1  #: share of sounds without speech in a batch


class Truth(NamedTuple):
    """What a batch ought to say."""

    channels: Tensor  #: (batch, T, 5)
    known: Tensor  #: (batch, T) bool, where the channels are
    together: Tensor  #: (batch, T) bool, the lips touch
    speech: Tensor  #: (batch, T) 0..1, -1 where there is no sound


def train_temporal(items: Sequence[Item], meta: Meta, training: Training, seed: int) -> Temporal:
    """One network; the same items and seed give the same network on the same machine."""
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Temporal(meta)
        spoken = [item for item in items if item.clip >= 0]
        quiet = [item for item in items if item.clip < 0]
        chances = _chances(spoken)
        optimiser = torch.optim.AdamW(network.parameters(), lr=training.rate, weight_decay=training.decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, training.rate, total_steps=training.steps, pct_start=0.1
        )
        network.train()
        for _ in range(training.steps):
            drawn = [spoken[number] for number in rng.choice(len(spoken), training.batch, p=chances)]
            for place in np.flatnonzero(rng.random(training.batch) < training.silence) if quiet else ():
                drawn[place] = quiet[int(rng.integers(len(quiet)))]
            batch = [_crop(item, training.crop, int(rng.integers(1 << 30))) for item in drawn]
            inputs, *truth = (torch.stack(parts) for parts in zip(*batch, strict=True))
            inputs = inputs + training.noise * torch.randn_like(inputs)
            said = network(inputs.transpose(1, 2)).transpose(1, 2)
            optimiser.zero_grad()
            torch.autograd.backward(_loss(said, Truth(*truth), training))
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            schedule.step()
    return network.eval().requires_grad_(False)


def _chances(items: Sequence[Item]) -> Array:
    """How often each item is drawn: by its length, but nobody more often than ``SAME_SAY`` frames deserve."""
    frames: dict[str, float] = {}
    for item in items:
        frames[item.speaker] = frames.get(item.speaker, 0.0) + len(item.known)
    least = SAME_SAY * len({item.disguise for item in items})
    chances = np.array([len(item.known) * min(1.0, least / frames[item.speaker]) for item in items])
    return np.asarray(chances / chances.sum())


def _crop(item: Item, frames: int, draw: int) -> tuple[Tensor, ...]:
    """A stretch of so many frames; a shorter clip is filled up with frames that count nowhere."""
    start = draw % max(1, len(item.known) - frames + 1)
    parts = [part[start : start + frames] for part in (item.channels, item.known, item.together, item.speech)]
    inputs = item.inputs[2 * start : 2 * (start + frames)]
    heard = torch.ones(len(parts[0]), dtype=torch.bool)
    if missing := frames - len(heard):
        inputs = functional.pad(inputs, (0, 0, 0, 2 * missing))
        parts = [functional.pad(part, (*[0, 0] * (part.ndim - 1), 0, missing)) for part in parts]
        heard = functional.pad(heard, (0, missing))
    channels, known, together, speech = parts
    return inputs, channels, known & heard, together, torch.where(heard, speech, -torch.ones(()))


def _loss(said: Tensor, truth: Truth, how: Training) -> Tensor:
    """Squared error and 1 − r of the channels, cross entropy of closure (while speaking) and of speech."""
    channels, known, together, speech = truth
    importance = torch.tensor(how.channels)
    mask = known[..., None].float()
    guess = said[..., : len(CHANNELS)]
    error = ((guess - channels) ** 2 * mask * importance).sum() / (mask.sum() * len(CHANNELS) + 1e-6)
    count = mask.sum(dim=1, keepdim=True) + 1e-3
    guess = (guess - (guess * mask).sum(1, keepdim=True) / count) * mask
    wanted = (channels - (channels * mask).sum(1, keepdim=True) / count) * mask
    alike = (guess * wanted).sum(1) / torch.sqrt((guess**2).sum(1) * (wanted**2).sum(1) + 1e-2)
    seen = (known.sum(1) > 10).float()[:, None]
    disagreement = ((1 - alike) * importance * seen).sum() / (seen.sum() * len(CHANNELS) + 1e-6)
    speaking = (known & (speech > SPEECH)).float()
    entropy = functional.binary_cross_entropy_with_logits
    closure = entropy(said[..., CLOSED], together.float(), reduction="none")
    voice = entropy(said[..., SPEECH_LOGIT], speech.clamp(0, 1), reduction="none")
    heard = (speech >= 0).float()
    loss: Tensor = (
        error
        + how.correlation * disagreement
        + how.closure * (closure * speaking).sum() / (speaking.sum() + 1e-6)
        + how.speech * (voice * heard).sum() / (heard.sum() + 1e-6)
    )
    return loss
