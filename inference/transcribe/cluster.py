"""Who speaks when: voices of a whole recording grouped into speakers, in bounded time and memory.

Pure numpy. Average linkage over unit vectors, where the similarity of two groups is the mean cosine over all
pairs across them, which is simply the dot product of the groups' mean vectors. Long recordings are first
condensed to ``MAX_ITEMS`` small groups, so the cost stays at a few seconds whatever the length.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from inference.audio import Array

# Chosen on the tuning half of the recordings that inference.dialogues makes.
BREAK = 0.62  #: cosine of overlapping windows below which the voice changes between them
USUAL, USUAL_WEIGHT = (
    0.6,
    4.0,
)  #: mean cosine of two windows of one person where nothing is known; counts as so many pairs
BREATH = 0.9  #: of the mean cosine within one breath, this share is left between breaths
STOP = 0.65  #: of the usual cosine: two groups below are not joined blindly
SAME = 0.62  #: how like each other two groups of one person sound, 1 being how like itself each of them sounds
PART = 0.6  #: the same for the two halves of one group
BOTH_NARROW, ONE_NARROW = 0.1, -0.2  #: added for telephone voices, which are all alike, and when only one is
ONCE = -0.1  #: added where one group ends before the other begins, as when the channel of one person changes
OWN_WEIGHT = 8.0  #: pairs of windows that the usual cosine counts for in each group
LEAST_OWN = 0.1
CALM, SLOPE, CLEAR = 1.0, 8.0, 0.3  #: log odds of a right number: at a margin of 0, per margin, up to which margin
MIN_SPEAKER_S = 1.5  #: who is heard for less is counted to the most similar other speaker …
MIN_SHARE = 0.002  #: … and so is who has less than this share of the speech: 20 s of three hours
MIN_VOTE_S = 0.9  #: shorter windows are labelled, but found no speaker of their own
MAX_ITEMS = 800
CHUNK = 1024  #: rows per matrix product, bounds memory

Labels = NDArray[np.int64]
Vectors = NDArray[np.float16] | NDArray[np.float32]


@dataclass(frozen=True)
class Wanted:
    """How many speakers there may be."""

    least: int = 1
    most: int = 100

    @classmethod
    def of(cls, count: int | None = None, least: int | None = None, most: int | None = None) -> Wanted:
        """From what a job says: a number, or bounds."""
        return cls(count, count) if count is not None else cls(least or 1, most or max(least or 1, 100))


@dataclass(frozen=True)
class Speakers:
    """The outcome: one centroid per speaker, in order of first appearance."""

    centroids: Array  #: shape (speakers, dimensions), unit length
    labels: Labels  #: speaker of each window
    confidence: float | None = None


@dataclass(frozen=True)
class Heard:
    """Windows of speech in order of time."""

    vectors: Vectors  #: (n, dimensions) of unit length
    seconds: Array  #: length of each window
    spans: Labels  #: windows of one number were said in one breath
    narrow: NDArray[np.bool_]  #: as if through a telephone


def find_speakers(heard: Heard, wanted: Wanted | None = None) -> Speakers:
    """Group windows of speech by voice. Fewer speakers than wanted come back only when there are fewer windows."""
    wanted = wanted or Wanted()
    voting = np.flatnonzero(heard.seconds >= MIN_VOTE_S)
    if len(voting) < wanted.least or not len(voting):
        voting = np.arange(len(heard.vectors))
    voters = Heard(
        heard.vectors[voting].astype(np.float32), heard.seconds[voting], heard.spans[voting], heard.narrow[voting]
    )
    usual = _usual(voters)
    groups = _condensed(_breaths(voters))
    member = _settle(groups, _agglomerate(groups, wanted, STOP * usual))
    member, parted = _part(groups, member, wanted, usual)
    member, joined = _merge_same(groups, member, wanted, usual)
    confidence = None if wanted.least == wanted.most else _confidence(min(parted, joined))
    centroids = _units(groups.joined(member).sums)
    labels = nearest(heard.vectors, centroids)
    used, first_at = np.unique(labels, return_index=True)
    order = used[np.argsort(first_at)]
    rank = np.zeros(len(centroids), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return Speakers(centroids[order], rank[labels], confidence)


def similarities(vectors: Vectors, centroids: Array) -> Array:
    """How much each window sounds like each speaker: cosines of shape (n, speakers)."""
    parts = [vectors[at : at + CHUNK].astype(np.float32) @ centroids.T for at in range(0, len(vectors), CHUNK)]
    return np.concatenate(parts) if parts else np.zeros((0, len(centroids)), dtype=np.float32)


def nearest(vectors: Vectors, centroids: Array) -> Labels:
    """The most similar centroid of each vector."""
    return np.asarray(np.argmax(similarities(vectors, centroids), axis=1), dtype=np.int64)


@dataclass(frozen=True)
class _Groups:
    """Windows that stay together."""

    sums: Array  #: of their vectors
    weights: NDArray[np.float64]  #: their number
    seconds: NDArray[np.float64]  #: of speech that may make them a speaker
    squares: NDArray[np.float64]  #: squared lengths of the sums of each breath, together
    pairs: NDArray[np.float64]  #: pairs of windows within breaths
    narrow: NDArray[np.float64]  #: windows that are narrow
    first: NDArray[np.float64]  #: number of the first window
    last: NDArray[np.float64]

    def joined(self, member: Labels) -> _Groups:
        """Groups of these groups."""
        count = int(member.max()) + 1
        sums = np.zeros((count, self.sums.shape[1]), np.float32)
        np.add.at(sums, member, self.sums)
        first, last = np.full(count, np.inf), np.full(count, -np.inf)
        np.minimum.at(first, member, self.first)
        np.maximum.at(last, member, self.last)
        columns = (self.weights, self.seconds, self.squares, self.pairs, self.narrow)
        totals = [np.bincount(member, column, count).astype(np.float64) for column in columns]
        return _Groups(sums, *[*totals, first, last])

    def chosen(self, items: Labels) -> _Groups:
        """Some of these groups."""
        return _Groups(*(getattr(self, each.name)[items] for each in fields(self)))


def _breaths(heard: Heard) -> _Groups:
    """Windows of one span, parted where neighbours do not sound alike."""
    rows, spans = heard.vectors, heard.spans
    changes = spans[:-1] != spans[1:]
    breaks = ~changes & (np.sum(rows[:-1] * rows[1:], axis=1) < BREAK)
    member = np.concatenate(([0], np.cumsum(breaks | changes))).astype(np.int64)
    beside = np.append(breaks, False) | np.insert(breaks, 0, False)
    mixed = beside & (np.bincount(member)[member] == 1)  # a window by itself between others may hold two voices
    ones = np.ones(len(rows))
    single = _Groups(
        np.asarray(rows, np.float32),
        ones,
        np.where(mixed, 0.0, heard.seconds),
        ones,
        ones,
        heard.narrow.astype(np.float64),
        np.arange(len(rows), dtype=np.float64),
        np.arange(len(rows), dtype=np.float64),
    )
    joined = single.joined(member)
    return replace(joined, squares=np.sum(joined.sums.astype(np.float64) ** 2, axis=1), pairs=joined.weights**2)


def _usual(heard: Heard) -> float:
    """The mean cosine of two windows of one person in this recording, from what is said in one breath."""
    near = heard.spans[:-2] == heard.spans[2:]
    cosines = np.sort(np.sum(heard.vectors[:-2] * heard.vectors[2:], axis=1)[near])
    cosines = cosines[len(cosines) // 4 :]  # the lowest may be of two people
    return float((USUAL * USUAL_WEIGHT + BREATH * cosines.sum()) / (USUAL_WEIGHT + len(cosines)))


def _units(rows: Array) -> Array:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6), dtype=np.float32)


def _condensed(groups: _Groups) -> _Groups:
    """At most ``MAX_ITEMS`` groups, like ones joined (spherical k-means)."""
    if len(groups.sums) <= MAX_ITEMS:
        return groups
    rows = _units(groups.sums)
    centroids = rows[np.linspace(0, len(rows) - 1, MAX_ITEMS).round().astype(int)]
    for _ in range(4):
        _, member = np.unique(nearest(rows, centroids), return_inverse=True)
        joined = groups.joined(member)
        centroids = _units(joined.sums)
    return joined


def _agglomerate(groups: _Groups, wanted: Wanted, stop: float) -> list[list[int]]:
    """Merge the two most similar groups again and again, until no two are alike; those long enough to be people."""
    means = (groups.sums / groups.weights[:, None]).astype(np.float32)
    weights, seconds = groups.weights.copy(), groups.seconds.copy()
    enough = _enough(groups)
    left: dict[int, list[int]] = {index: [index] for index in range(len(means))}
    similar = means @ means.T
    np.fill_diagonal(similar, -np.inf)
    kept: list[list[int]] = []
    while True:
        big = [index for index in left if seconds[index] >= enough]
        if len(big) >= wanted.least or not kept:
            kept = [list(left[index]) for index in big or left]
        one, two = divmod(int(np.argmax(similar)), len(means))
        if len(left) == 1 or similar[one, two] < stop or len(big) < len(kept):
            break
        total = weights[one] + weights[two]
        means[one] = (means[one] * weights[one] + means[two] * weights[two]) / total
        weights[one], seconds[one] = total, seconds[one] + seconds[two]
        left[one] += left.pop(two)
        row = means @ means[one]
        row[[index for index in range(len(means)) if index not in left]] = -np.inf
        row[one] = -np.inf
        similar[one], similar[:, one] = row, row
        similar[two], similar[:, two] = -np.inf, -np.inf
    return kept


def _settle(groups: _Groups, found: list[list[int]]) -> Labels:
    """The group of every item, after a few rounds of spherical k-means from the groups found."""
    centroids = _units(np.stack([groups.sums[members].sum(axis=0) for members in found]))
    for _ in range(4):
        member = nearest(groups.sums, centroids)
        sums = np.zeros_like(centroids)
        np.add.at(sums, member, groups.sums)
        empty = np.bincount(member, minlength=len(centroids)) == 0
        centroids = np.where(empty[:, None], centroids, _units(sums))
    return np.unique(nearest(groups.sums, centroids), return_inverse=True)[1].astype(np.int64)


def _margins(people: _Groups, usual: float, same: float) -> Array:
    """How far each two groups are from being two people (below 0) and from being one (above).

    Two groups are judged by their mean cosine next to the mean cosines within them, which noise lowers as well.
    """
    means = people.sums / people.weights[:, None]
    within = np.sum(people.sums.astype(np.float64) ** 2, axis=1) - people.squares
    own = (within + usual * OWN_WEIGHT) / (people.weights**2 - people.pairs + OWN_WEIGHT)
    own = np.sqrt(np.maximum(own, LEAST_OWN))
    narrow = people.narrow > people.weights / 2
    shift = np.where(narrow[:, None] & narrow, BOTH_NARROW, np.where(narrow[:, None] ^ narrow, ONE_NARROW, 0.0))
    once = people.last[:, None] < people.first
    shift = shift + ONCE * (once | once.T)
    margins = (means @ means.T) / own[:, None] / own[None] - same - shift
    np.fill_diagonal(margins, -np.inf)
    return np.asarray(margins, dtype=np.float32)


def _enough(groups: _Groups) -> float:
    """Seconds of speech that make a speaker."""
    return max(MIN_SPEAKER_S, MIN_SHARE * float(groups.seconds.sum()))


def _part(groups: _Groups, member: Labels, wanted: Wanted, usual: float) -> tuple[Labels, float]:
    """Part groups whose two halves are not one person; the members, and how near the closest decision was."""
    enough, margin = _enough(groups), 1.0
    open_groups = list(range(int(member.max()) + 1))
    while open_groups:
        who = open_groups.pop()
        items = np.flatnonzero(member == who)
        halves = _bisect(groups.sums[items])
        if halves is None:
            continue
        two = groups.chosen(items).joined(halves)
        if two.seconds.min() < enough:
            continue
        alike = float(_margins(two, usual, PART)[0, 1])
        margin = min(margin, abs(alike))
        count = int(member.max()) + 1
        if alike < 0 and count < wanted.most:
            member = member.copy()
            member[items[halves == 1]] = count
            open_groups += [who, count]
    return member, margin


def _bisect(sums: Array) -> Labels | None:
    """Two halves of some items, from the two that are the least alike; None where there are not two."""
    if len(sums) < 2:
        return None
    rows = _units(sums)
    one, two = divmod(int(np.argmin(rows @ rows.T)), len(rows))
    if one == two:
        return None
    centroids = rows[[one, two]]
    for _ in range(6):
        halves = nearest(rows, centroids)
        if halves.min() == halves.max():
            return None
        centroids = _units(np.stack([sums[halves == half].sum(axis=0) for half in (0, 1)]))
    return halves


def _confidence(margin: float) -> float:
    """The probability that the number of speakers is right, from how near the closest decision was."""
    return round(float(1 / (1 + np.exp(-(CALM + SLOPE * min(margin, CLEAR))))), 2)


def _merge_same(groups: _Groups, member: Labels, wanted: Wanted, usual: float) -> tuple[Labels, float]:
    """Join groups that are one person, the most alike first; the members, and how near the closest decision was."""
    margin = 1.0
    while (count := int(member.max()) + 1) > 1:
        margins = _margins(groups.joined(member), usual, SAME)
        one, two = divmod(int(np.argmax(margins)), count)
        margin = min(margin, abs(float(margins[one, two])))
        if count <= wanted.least or (margins[one, two] < 0 and count <= wanted.most):
            break
        member = np.where(member == two, one, member)
        member = _settle(groups, [np.flatnonzero(member == who).tolist() for who in np.unique(member)])
    return member, margin
