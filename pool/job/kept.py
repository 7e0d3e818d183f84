"""What of a job its record keeps, so that the job can be found, and run again, after its file is gone.

tags, note     as submitted
terms          how it was to be run
params         its parameters, at most 64 KiB of them
left_out       parameter -> why its value is not there: secret, or too large
items          of a map job: how many calls, without their parameters
rerun_of       the job that this one repeats
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pool.errors import ProtocolError


@dataclass(frozen=True)
class Kept:
    """params: None when the record keeps none. left_out[""]: why there is no parameter at all."""

    tags: tuple[str, ...] = ()
    note: str = ""
    terms: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    items: int | None = None
    rerun_of: str = ""

    def to_map(self) -> dict[str, Any]:
        """What there is, as it stands in a record."""
        full: dict[str, Any] = {}
        for key in ("tags", "note", "rerun_of", "terms", "left_out"):
            value = getattr(self, key)
            if value:
                full[key] = value
        if self.params is not None:
            full["params"] = self.params
        if self.items is not None:
            full["items"] = self.items
        return full

    @classmethod
    def from_map(cls, value: Mapping[str, Any]) -> Kept:
        """Of a record, also of one that was written before there was such a thing. Raises ProtocolError."""
        try:
            kept = cls(
                tuple(value.get("tags", ())),
                value.get("note", ""),
                value.get("terms", {}),
                value.get("params"),
                value.get("left_out", {}),
                value.get("items"),
                value.get("rerun_of", ""),
            )
        except TypeError as error:
            raise ProtocolError(f"what the record keeps of its job is damaged: {error}") from None
        maps = isinstance(kept.terms, dict) and isinstance(kept.left_out, dict)
        maps = maps and (kept.params is None or isinstance(kept.params, dict))
        texts = type(kept.note) is type(kept.rerun_of) is str and all(type(tag) is str for tag in kept.tags)
        if not (maps and texts and (kept.items is None or type(kept.items) is int)):
            raise ProtocolError("what the record keeps of its job is damaged")
        return kept


NOTHING = Kept()
