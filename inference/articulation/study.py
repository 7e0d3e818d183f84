"""Leave one speaker out: heads that never saw or heard a speaker, judged on that speaker.

Everything that is fitted is fitted again for each speaker left out: components, regression, networks. Only the lags of
the clips are shared, each found by a regression that never saw its speaker. Fitted folds are kept in the cache folder
under a digest of all that went into them, so that an evaluation after a training costs seconds. The regressions that
serve as floors take their components from all clips, which favours them if anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from inference import weights
from inference.articulation.clips import Clip, find_clips, read_clips
from inference.articulation.curve import CHANNELS
from inference.articulation.encoder import load_encoder
from inference.articulation.examples import PLAIN, SPEECH, Example, Listener, Targets, make_examples, silences, targets
from inference.articulation.fit import PENALTY, RidgeSums, fit_reducer, make_items, moved
from inference.articulation.gate import delivered, voicing
from inference.articulation.head import SPEECH_LOGIT, TAPS, Head, Meta, Reducer, taps
from inference.articulation.lags import align, correlations
from inference.articulation.sound import levelled, rms
from inference.articulation.temporal import Training, train_temporal
from inference.audio import Array

RECIPE = "fold-2"  #: part of the cached folds' names: raise it when the fitting changes
#: The regression to be beaten: last layer, 128 components, nine taps.
FLOOR = Meta(layers=(6,), components=128, members=0)
FLOOR_TAPS, FLOOR_PENALTY = 4, 3000.0

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Study:
    """Clips with all that is needed to fit and to judge heads."""

    meta: Meta
    training: Training
    clips: list[Clip]
    examples: list[Example]  #: speech first, then silences
    goals: dict[int, Targets]
    lags: dict[int, int]  #: half frames
    cache: Path
    say: Say

    @property
    def speakers(self) -> list[str]:
        """Everybody who talks in the clips, sorted."""
        return sorted({clip.speaker for clip in self.clips})

    def plain(self, clip: int) -> Example:
        """A clip as it is."""
        return next(each for each in self.examples if each.clip == clip and each.disguise == PLAIN)

    def fit(self, without: str = "") -> Head:
        """A head from all speakers but one."""
        chosen = [each for each in self.examples if not without or each.speaker != without]
        head = Head(self.meta)
        head.reducer = fit_reducer(chosen, self.meta)
        items = make_items(chosen, self.goals, self.lags, head.reducer)
        solution = RidgeSums(items).solve()
        head.ridge.load_state_dict({"weight": solution[:-1], "bias": solution[-1]})
        for number in range(self.meta.members):
            network = train_temporal(items, self.meta, self.training, self.meta.seed + number)
            head.temporal[number].load_state_dict(network.state_dict())
        return head.requires_grad_(False).eval()

    def held_out(self) -> dict[int, Array]:
        """(T, OUTPUTS) for every clip from a head without its speaker, at the clip's lag."""
        found = {}
        for speaker in self.speakers:
            path = self.cache / f"{self._digest(speaker)}.npz"
            if path.exists():
                head = Head.load(path)
            else:
                self.say(f"fitting without {speaker}")
                head = self.fit(without=speaker)
                head.save(path)
            for number, clip in enumerate(self.clips):
                if clip.speaker == speaker:
                    found[number] = head.read(self._inputs(number, head.reducer)).numpy()
        return found

    def delivered(self, predictions: dict[int, Array]) -> dict[int, Array]:
        """(T, 5): the same as ``Articulator`` gives it out, at rest where nobody speaks; rest is that of others."""
        found = {}
        for number, said in predictions.items():
            clip = self.clips[number]
            loudness = rms(levelled(clip.samples))
            voiced = voicing(said[:, SPEECH_LOGIT], loudness[moved(len(said), self.lags[number], len(loudness))])
            found[number] = delivered(said[:, : len(CHANNELS)], voiced, self.rest(without=clip.speaker))
        return found

    def rest(self, without: str = "") -> Array:
        """(5,) channels of a mouth whose owner says nothing and whose lips touch; median over speakers."""
        found: dict[str, list[Array]] = {}
        for number, goal in self.goals.items():
            speech = self.plain(number).speech
            wanted = 2 * len(goal.known)
            pairs = np.pad(speech, (0, max(0, wanted - len(speech))), mode="edge")[:wanted].reshape(-1, 2)
            chosen = goal.channels[goal.together & (pairs.max(axis=1) < SPEECH / 2)]
            if len(chosen) and self.clips[number].speaker != without:
                found.setdefault(self.clips[number].speaker, []).append(chosen)
        means = [np.concatenate(parts).mean(axis=0) for parts in found.values() if sum(map(len, parts)) >= 5]
        return np.asarray(np.median(means, axis=0) if means else np.zeros(len(CHANNELS)), np.float32)

    def ridge_held_out(self) -> dict[int, Array]:
        """(T, 5): the regression alone, same inputs."""
        return self._regressions(self.meta, self.examples, TAPS, PENALTY)

    def floor(self, listener: Listener) -> dict[int, Array]:
        """(T, 5): the study's regression on the last layer."""
        plain = [
            Example(each.clip, each.speaker, PLAIN, listener.listen(f"{clip.digest[:16]}-plain", sound), each.speech)
            for each, clip in ((self.plain(number), clip) for number, clip in enumerate(self.clips))
            for sound in [levelled(clip.samples)]
        ]
        return self._regressions(FLOOR, plain, FLOOR_TAPS, FLOOR_PENALTY)

    def _regressions(self, meta: Meta, examples: Sequence[Example], reach: int, penalty: float) -> dict[int, Array]:
        found = {}
        reducer = fit_reducer([each for each in examples if each.clip >= 0], meta)
        items = make_items(examples, self.goals, self.lags, reducer)
        sums = RidgeSums(items, reach)
        solutions = {speaker: sums.solve(speaker, penalty) for speaker in self.speakers}
        for item in items:
            if item.clip >= 0 and item.disguise == PLAIN:
                solution = solutions[item.speaker]
                found[item.clip] = (taps(item.inputs, reach) @ solution[:-1] + solution[-1]).numpy()
        return found

    def loudness(self) -> dict[int, Array]:
        """(T, 5): the level in decibels, smoothed a little, for every channel."""
        found = {}
        for number, clip in enumerate(self.clips):
            level = 20 * np.log10(np.maximum(rms(levelled(clip.samples)), 1e-3))
            level = np.convolve(np.pad(level, 2, mode="edge"), np.ones(5) / 5, mode="valid")
            frames = len(clip.mouth)
            pairs = level[moved(frames, self.lags[number], len(level))].reshape(frames, 2).mean(axis=1)
            found[number] = np.repeat(pairs[:, None], len(CHANNELS), axis=1).astype(np.float32)
        return found

    def judged(self, predictions: dict[int, Array]) -> dict[int, Array]:
        """(5,) r per channel for every clip."""
        return {clip: correlations(predictions[clip], self.goals[clip]) for clip in sorted(predictions)}

    def per_speaker(self, figures: dict[int, Array]) -> dict[str, Array]:
        """Means over each speaker's clips."""
        return {
            speaker: np.mean([figures[n] for n, clip in enumerate(self.clips) if clip.speaker == speaker], axis=0)
            for speaker in self.speakers
        }

    def _inputs(self, clip: int, reducer: Reducer) -> torch.Tensor:
        reduced: torch.Tensor = reducer(torch.from_numpy(self.plain(clip).layers).float())
        index = moved(len(self.goals[clip].known), self.lags[clip], len(reduced))
        return reduced[torch.from_numpy(index)]

    def _digest(self, speaker: str) -> str:
        everything = {
            "recipe": RECIPE,
            "without": speaker,
            "meta": asdict(self.meta),
            "training": asdict(self.training),
            "clips": [clip.digest for clip in self.clips],
            "lags": [self.lags[number] for number in range(len(self.clips))],
        }
        return "fold-" + hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:16]


def prepare(
    sources: Sequence[Path],
    cache: Path,
    meta: Meta,
    training: Training,
    *,
    whisper: Path | None = None,
    say: Say = print,
) -> tuple[Study, Listener]:
    """Measure, encode, align; also the listener for the last layer, which only the floor needs."""
    folder = weights.find_model("whisper-base", whisper)
    key = weights.digest(folder / "model.bin")
    clips = read_clips(find_clips(sources), cache, say)
    listener = Listener(lambda: load_encoder(folder, meta.layers), meta.layers, key, cache)
    spoken = make_examples(clips, listener, say)
    goals = {
        number: targets(clip, next(each.speech for each in spoken if each.clip == number))
        for number, clip in enumerate(clips)
    }
    say("aligning sound and picture")
    lags = align(spoken, goals, fit_reducer(spoken, meta), TAPS, PENALTY)
    study = Study(meta, training, clips, [*spoken, *silences(listener)], goals, lags, cache, say)
    return study, Listener(lambda: load_encoder(folder, FLOOR.layers), FLOOR.layers, key, cache)
