"""A job of the cluster in the spool of a node: its id there, and the note by which a new agent knows it again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from pool.cluster.wire import JobKey
from pool.errors import ProtocolError

TAG = "cluster"  # of all jobs that an agent has submitted
_ID_CHARS, _STEM_CHARS = 100, 80


@dataclass(frozen=True)
class Errand:
    """What an agent must know of a job that it took. delivery: which one of this job; reply: where its lease is
    renewed and its message acknowledged."""

    key: JobKey
    delivery: int
    reply: str

    @property
    def local_id(self) -> str:
        """The id in the spool of the node, at most 100 characters: another one for each delivery."""
        tail = f"-g{self.delivery}" if not self.key.run else f"-r{self.key.run}g{self.delivery}"
        if len(self.key.id) + len(tail) <= _ID_CHARS:
            return self.key.id + tail
        return f"{self.key.id[:_STEM_CHARS]}-{hashlib.sha256(str(self.key).encode()).hexdigest()[:8]}{tail}"

    def note(self) -> str:
        """The note of the job in the spool of the node: at most 500 characters of plain text."""
        return json.dumps([str(self.key), self.delivery, self.reply], separators=(",", ":"))

    @classmethod
    def of_note(cls, text: str) -> Errand:
        """Raises ProtocolError."""
        try:
            key, delivery, reply = json.loads(text)
        except (ValueError, TypeError):
            raise ProtocolError(f"{text!r:.80} is not the note of an agent") from None
        if type(delivery) is not int or not isinstance(reply, str):
            raise ProtocolError(f"{text!r:.80} is not the note of an agent")
        return cls(JobKey.parse(key), delivery, reply)
