"""Who speaks when: voices of a whole recording grouped into speakers, in bounded time and memory.

Pure numpy. Average linkage over unit vectors, where the similarity of two groups is the mean cosine over all
pairs across them, which is simply the dot product of the groups' mean vectors. Long recordings are first
condensed to ``MAX_ITEMS`` small groups, so the cost stays at a few seconds whatever the length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.audio import Array

#: Mean cosine between 1.6 s windows below which two groups are two people. Measured on 24 voices: the same
#: person 0.70 to 0.83, two people at most 0.56.
SAME_SPEAKER = 0.58
#: Cosine between the means of two whole groups above which they are one person (others: up to 0.75).
SAME_CENTROID = 0.79
MIN_SPEAKER_S = 1.5  #: who is heard for less is counted to the most similar other speaker …
MIN_SHARE = 0.002  #: … and so is who has less than this share of the speech: 20 s of three hours
MIN_VOTE_S = 0.9  #: shorter windows are labelled, but found no speaker of their own
MAX_ITEMS = 800
CHUNK = 1024  #: rows per matrix product, bounds memory

Labels = NDArray[np.int64]
Vectors = NDArray[np.float16] | NDArray[np.float32]


@dataclass(frozen=True)
class Speakers:
    """The outcome: one centroid per speaker, in order of first appearance."""

    centroids: Array  #: shape (speakers, 256), unit length
    labels: Labels  #: speaker of each window


def find_speakers(vectors: Vectors, starts: Array, ends: Array, count: int | None = None) -> Speakers:
    """Group windows of speech by voice.

    ``vectors`` (n, 256) of unit length, ``starts`` and ``ends`` in seconds and in order of time; ``count``
    fixes the number of speakers (fewer come back only when there are fewer windows).
    """
    voting = np.flatnonzero(ends - starts >= MIN_VOTE_S)
    if len(voting) < (count or 1):
        voting = np.arange(len(vectors))
    voters = vectors[voting].astype(np.float32)
    sums, weights, member = _condense(voters)
    hop = _new_seconds(starts[voting], ends[voting])
    seconds = np.bincount(member, weights=hop, minlength=len(sums)).astype(np.float64)
    groups = _agglomerate(sums, weights, seconds, count)
    centroids = _units(np.stack([sums[group].sum(axis=0) for group in groups]))
    centroids = _refine(voters, centroids)
    if count is None:
        centroids = _merge_alike(voters, centroids)
    labels = nearest(vectors, centroids)
    used, first_at = np.unique(labels, return_index=True)
    order = used[np.argsort(first_at)]
    rank = np.zeros(len(centroids), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return Speakers(centroids[order], rank[labels])


def similarities(vectors: Vectors, centroids: Array) -> Array:
    """How much each window sounds like each speaker: cosines of shape (n, speakers)."""
    parts = [vectors[at : at + CHUNK].astype(np.float32) @ centroids.T for at in range(0, len(vectors), CHUNK)]
    return np.concatenate(parts) if parts else np.zeros((0, len(centroids)), dtype=np.float32)


def nearest(vectors: Vectors, centroids: Array) -> Labels:
    """The most similar centroid of each vector."""
    parts = [
        np.argmax(vectors[at : at + CHUNK].astype(np.float32) @ centroids.T, axis=1)
        for at in range(0, len(vectors), CHUNK)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _new_seconds(starts: Array, ends: Array) -> NDArray[np.float64]:
    """Seconds of each window that no earlier window covers."""
    covered = np.concatenate(([-np.inf], np.maximum.accumulate(ends)[:-1]))
    return np.asarray(np.clip(ends - np.maximum(starts, covered), 0.0, None), dtype=np.float64)


def _units(rows: Array) -> Array:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6), dtype=np.float32)


def _condense(vectors: Array) -> tuple[Array, NDArray[np.float64], Labels]:
    """Sums, sizes and members of at most ``MAX_ITEMS`` groups of like vectors (spherical k-means)."""
    if len(vectors) <= MAX_ITEMS:
        return vectors.copy(), np.ones(len(vectors)), np.arange(len(vectors))
    centroids = vectors[np.linspace(0, len(vectors) - 1, MAX_ITEMS).round().astype(int)]
    member = nearest(vectors, centroids)
    for _ in range(3):
        sums = _sum_by(vectors, member, MAX_ITEMS)
        empty = np.bincount(member, minlength=MAX_ITEMS) == 0
        centroids = np.where(empty[:, None], centroids, _units(sums))
        member = nearest(vectors, centroids)
    used, member = np.unique(member, return_inverse=True)
    sums = _sum_by(vectors, member, len(used))
    return sums, np.bincount(member).astype(np.float64), member


def _sum_by(vectors: Array, member: Labels, count: int) -> Array:
    sums = np.zeros((count, vectors.shape[1]), dtype=np.float32)
    for at in range(0, len(vectors), CHUNK):
        order = np.argsort(member[at : at + CHUNK], kind="stable")
        groups, firsts = np.unique(member[at : at + CHUNK][order], return_index=True)
        sums[groups] += np.add.reduceat(vectors[at : at + CHUNK][order], firsts, axis=0)
    return sums


def _agglomerate(
    sums: Array, weights: NDArray[np.float64], seconds: NDArray[np.float64], count: int | None
) -> list[list[int]]:
    """Merge the two most similar groups again and again; the groups left that are long enough to be people.

    Without ``count``: until no two are alike. With it: the last state that has ``count`` groups long enough.
    """
    means = (sums / weights[:, None]).astype(np.float32)
    weights, seconds = weights.copy(), seconds.copy()
    enough = max(MIN_SPEAKER_S, MIN_SHARE * float(seconds.sum()))
    groups: dict[int, list[int]] = {index: [index] for index in range(len(means))}
    similar = means @ means.T
    np.fill_diagonal(similar, -np.inf)
    best: list[list[int]] | None = None
    while True:
        big = [index for index in groups if seconds[index] >= enough]
        if count is not None and len(big) == count:
            best = [list(groups[index]) for index in big]
        at = int(np.argmax(similar))
        one, two = divmod(at, len(means))
        alike = similar[one, two]
        if len(groups) == 1 or (count is None and alike < SAME_SPEAKER):
            break
        if count is not None and len(groups) <= count:
            break
        total = weights[one] + weights[two]
        means[one] = (means[one] * weights[one] + means[two] * weights[two]) / total
        weights[one], seconds[one] = total, seconds[one] + seconds[two]
        groups[one] += groups.pop(two)
        row = means @ means[one]
        row[[index for index in range(len(means)) if index not in groups]] = -np.inf
        row[one] = -np.inf
        similar[one], similar[:, one] = row, row
        similar[two], similar[:, two] = -np.inf, -np.inf
    if count is not None:
        return best or list(groups.values())
    people = [groups[index] for index in groups if seconds[index] >= enough]
    return people or [groups[max(groups, key=lambda index: seconds[index])]]


def _refine(vectors: Array, centroids: Array) -> Array:
    """A few rounds of spherical k-means from the groups found; no group is lost."""
    for _ in range(4):
        labels = nearest(vectors, centroids)
        sums = _sum_by(vectors, labels, len(centroids))
        empty = np.bincount(labels, minlength=len(centroids)) == 0
        centroids = np.where(empty[:, None], centroids, _units(sums))
    return centroids


def _merge_alike(vectors: Array, centroids: Array) -> Array:
    """Join speakers whose mean voices are alike, the most alike first."""
    while len(centroids) > 1:
        similar = centroids @ centroids.T
        np.fill_diagonal(similar, -1.0)
        one, two = divmod(int(np.argmax(similar)), len(centroids))
        if similar[one, two] < SAME_CENTROID:
            break
        sizes = np.bincount(nearest(vectors, centroids), minlength=len(centroids)) + 1e-3
        centroids[one] = centroids[one] * sizes[one] + centroids[two] * sizes[two]
        centroids = _refine(vectors, _units(np.delete(centroids, two, axis=0)))
    return centroids
