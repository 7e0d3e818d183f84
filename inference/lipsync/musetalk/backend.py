"""The ``musetalk`` backend: networks, what is kept of the template, and what paints a segment."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from inference import weights
from inference.encode import Frame
from inference.kept import Shelf, locked, recall
from inference.lipsync.frames import ahead
from inference.lipsync.musetalk import avatar, layout
from inference.lipsync.musetalk.avatar import Avatar
from inference.lipsync.musetalk.blend import Box, laid, soft_mask
from inference.lipsync.musetalk.hearing import Hearing
from inference.lipsync.musetalk.networks import Networks
from inference.lipsync.musetalk.parsing import Painted
from inference.lipsync.params import Options
from inference.lipsync.planes import to_bgr
from inference.lipsync.work import Work

BATCH_BYTES = 256 << 20  #: of decoded frames that one segment collects for a batch, at most


class MuseTalkBackend:
    """The published networks, loaded once."""

    def __init__(self, options: Options, device: str) -> None:
        self._published = layout.find(options.musetalk)
        self._networks = Networks(self._published, device, options.batch)
        self._painted = Painted(options.parsing_mode, options.left_cheek_width, options.right_cheek_width)
        self._margin = options.extra_margin
        cheeks = f"{options.left_cheek_width} {options.right_cheek_width}"
        self._shape = f"{options.extra_margin} {options.parsing_mode} {cheeks}"
        looking = [self._published.networks["vae"], self._published.networks["parsing"]]
        self._looks = weights.fingerprint([*looking, self._published.configurations["vae"]])
        self._keep = options.cache_mb << 19  #: bytes of avatars on disk

    def painter(self, work: Work) -> Callable[[int, int], MuseTalkPainter]:
        """What paints output frames start to stop."""
        seen = work.analysis
        boxes = avatar.boxes(seen.points, seen.clear, seen.shot, seen.size, self._margin)
        known = self._avatar(work, boxes)
        hearing = Hearing(self._networks.ears, work.samples)
        return lambda start, stop: MuseTalkPainter(self._networks, work, hearing, boxes, known)

    def _avatar(self, work: Work, boxes: list[Box | None]) -> Avatar:
        """Of all frames that the job shows, from the cache or made now and kept."""
        last = int(work.order.max()) + 1
        wanted = min(work.analysis.frames, -(-last // avatar.GROUP) * avatar.GROUP)
        folder = work.cache / "avatars"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self._key(work)}.npz"
        known = recall(path, Avatar.load)
        if known is not None and known.frames >= wanted:
            return known
        with locked(path.with_suffix(".lock"), work.check):
            known = recall(path, Avatar.load)  # made by somebody else while we waited
            if known is not None and known.frames >= wanted:
                return known
            start = 0 if known is None else known.frames
            more = self._look(work, boxes, start, wanted)
            known = more if known is None else known.joined(more)
            known.save(path)
        Shelf(folder, self._keep).prune()
        return known

    def _look(self, work: Work, boxes: list[Box | None], start: int, stop: int) -> Avatar:
        def tick(done: int) -> None:
            work.check()
            work.looked(start + done)

        with ahead(work.template.read(np.arange(start, stop, dtype=np.int32)), work.info) as frames:
            return avatar.prepare(self._networks, self._painted, map(to_bgr, frames), boxes[start:stop], tick)

    def _key(self, work: Work) -> str:
        """Stands for the template's content and for all that an avatar is made with.

        The template's landmarks stand for its content: no other content has them to the last bit.
        """
        seen = work.analysis
        about = f"{avatar.VERSION} {seen.width}×{seen.height} {self._shape} {self._networks.dtype} {self._looks}"
        sha = hashlib.sha256(about.encode())
        sha.update(np.ascontiguousarray(seen.points).data)
        return sha.hexdigest()[:32]

    def files(self) -> list[Path]:
        """Every file of weights in use."""
        return self._published.all

    def warmup(self) -> None:
        """Every network once, so that the first job meets no first-call cost."""
        self._networks.warmup()

    def close(self) -> None:
        """Nothing to end."""


class MuseTalkPainter:
    """Paints one segment (a :class:`inference.lipsync.pipeline.Painter`)."""

    def __init__(
        self, networks: Networks, work: Work, hearing: Hearing, boxes: list[Box | None], known: Avatar
    ) -> None:
        self.batch = max(1, min(networks.batch, BATCH_BYTES // (work.info.width * work.info.height * 5)))
        self._networks, self._work, self._hearing, self._boxes, self._avatar = networks, work, hearing, boxes, known

    def paint(self, frames: Sequence[Frame], outputs: Sequence[int]) -> list[Frame]:
        """The finished frames; those without a face as they are."""
        result = list(frames)
        places, chosen, sounds = [], [], []
        for place, output in enumerate(outputs):
            index = int(self._work.order[output])
            box = self._boxes[index]
            if box is not None:
                places.append((place, box, index))
                chosen.append(self._avatar.latents[index])
                sounds.append(self._hearing.window(output / self._work.info.fps))
        if places:
            faces = self._networks.paint(np.stack(chosen), np.stack(sounds), self._work.stop)
            for (place, box, index), face in zip(places, faces, strict=True):
                mask = soft_mask(self._avatar.mask(index), box)
                result[place] = laid(frames[place], face, box, mask)
        return result
