"""Records of jobs that nobody ran, for lists of them."""

from __future__ import annotations

from pool.format import codec
from pool.format.names import new_id
from pool.job import Failure, JobState, Record
from pool.job.kept import Kept
from pool.spool.store import Spool


def fill(spool: Spool, count: int, *, tag_every: int = 100, fail_every: int = 10) -> list[str]:
    """Write so many records into out/; their ids, oldest first."""
    ids = []
    for number in range(count):
        born = spool.now()
        job_id = new_id(born)
        failure = Failure("engine", "it broke\nand more", "run", 1) if number % fail_every == 0 else None
        state = JobState.FAILED if failure else JobState.COMPLETED
        kept = Kept(("some",) if number % tag_every == 0 else (), "a note", {}, {"audio": "/data/talk.wav"})
        value = None if failure else {"text": "x" * 200}
        record = Record(job_id, "echo", state, 1, born, born + 10, born + 500, "echo-0.1", value, failure, kept=kept)
        with open(spool.record_path(job_id), "wb") as file:
            file.write(codec.encode(record.to_map()))
        ids.append(job_id)
    return ids
