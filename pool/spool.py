"""The spool, protocol 1. This docstring is the specification; every transition is one rename, in one place.

Directories (all on one file system, mode 0700, files 0600)

    in/                 drop box: *.json, *.msgpack under any name, untrusted; only intake reads it
    ready/<engine>/     accepted jobs; they run in the order of their names
    work/<worker>/      claimed; one directory per worker process, <engine>-<index>.<generation>
    held/               <engine>.<job file>: a job that waits for the results of others
    deferred/           <due>.<engine>.<job file>: a job, or its next attempt, that waits for its time (16 digits, µs)
    out/<id>.msgpack    the one terminal record; out/<id>/ the files it names; out/<id>.json a rendering
    dead/               <engine>.<job file> of jobs that failed, for `retry`
    quarantine/         what was dropped and is no job, each with a .reason.txt
    progress/<id>       latest progress, replaced; progress/<id>.<attempt>.partial grows by framed records
    run/                supervisor.lock, supervisor.json, heartbeats/, slots/, logs/, clients/, control/, engines/,
                        scratch/, waits/, ids/<id> (a hard link to the job file reserves an id given by the caller),
                        attempts/<id>.<attempt>.msgpack (why that attempt failed), clock-<boot>, jobs.* (an index),
                        attempts/<id>.<attempt>.proof (the same, for the supervisor: the job completed in another slot),
                        expiry/<due>.<id> (when a job ends that was not begun),
                        dependants/<id>/<id> (the result of the first one is kept for the second one)
    cache/  tmp/        results by content hash; half-written files, named by their owner's process

Names: see `pool.names`.

Transitions and their commit points

    submit      tmp -> ready, deferred or held   rename, then fsync of that directory   the job is accepted
    claim       ready -> work             ONE rename that also raises the attempt  the job is ours
    release     work -> ready             rename that takes the attempt back       a drain burns none
    retry       note, then work -> ready or deferred   rename                     another attempt will come; behind
                                                                                   the others when it ended its worker
    let go      held -> ready or deferred  rename                                  its dependencies have completed
    hold        work -> held              rename that takes the attempt back       they have not: power was lost
    due         deferred -> ready         rename                                   by the supervisor
    finish      media, tmp -> out         no-replace rename, fsync of out/         the job is decided
                then the claim goes       unlink, or rename work -> dead           tidying
    requeue     out -> dead, dead -> ready                                         `retry` of a dead job
    seize       held, deferred, ready -> work   rename into work/<engine>-9999.<n>   the supervisor ends a waiting job

A crash between two steps leaves the job where the last commit point put it: state(id) is the furthest-along
directory that holds the id, in the order held, deferred, ready, work, out. A claim whose record exists is decided, and
recovery only tidies it. Readers scan in flow order and take one empty pass as no evidence.

Durable jobs sync file and directory at submit and finish; a claim is not synced: after power loss the job is in
ready/ or in work/, either is recovered.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pool import again, codec, fsops, layout, owner
from pool.acceptance import accept
from pool.blame import SAYS_NOTHING, slot_of
from pool.clock import boot_ns
from pool.constants import MAX_JOB_BYTES, MAX_RESULT_BYTES
from pool.errors import JobRefused, ProtocolError
from pool.fsops import NO_SPACE as NO_SPACE
from pool.ids import Ids
from pool.job import Failure, Job, JobState, Record
from pool.names import SUFFIX, JobName, WorkerName, parse_deferred, parse_job, parse_proof
from pool.placing import place, waiting_folders


class Claim(NamedTuple):
    """A job file in the directory of the worker that took it."""

    path: str
    name: JobName
    worker: WorkerName


class Spool:
    """One spool tree. Not bound to a process: every method may be called by clients, workers and supervisors."""

    def __init__(self, root: Path | str, *, durable: bool = True) -> None:
        self.root = Path(root)
        self.durable = durable
        self.id = layout.identity(self.root)
        self._at = str(self.root)
        self._offset = layout.clock_offset(self.root)
        self.ids = Ids(self.root)

    @classmethod
    def create(cls, root: Path | str, *, durable: bool = True) -> Spool:
        """Make or complete the tree, check it, open it."""
        layout.prepare(Path(root))
        return cls(root, durable=durable)

    # ---- time and places

    def now(self) -> int:
        """µs of the spool clock."""
        return self._offset + boot_ns() // 1000

    def ready_dir(self, engine: str) -> str:
        return f"{self._at}/ready/{engine}"

    def work_dir(self, worker: WorkerName) -> str:
        return f"{self._at}/work/{worker}"

    def record_path(self, job_id: str) -> str:
        return f"{self._at}/out/{job_id}{SUFFIX}"

    def files_dir(self, job_id: str) -> Path:
        """Where files of a job lie that have no path given by the caller."""
        return self.root / "out" / job_id

    def make_files_dir(self, job_id: str, *, sync: bool) -> None:
        """out/<id>/, in place before the record that names what is in it."""
        if fsops.make_dir(str(self.files_dir(job_id))) and sync:
            fsops.sync_dir(f"{self._at}/out")

    def note_path(self, job_id: str, attempt: int) -> str:
        return f"{self._at}/run/attempts/{job_id}.{attempt:02d}{SUFFIX}"

    def temp(self) -> str:
        """A fresh path in tmp/ that names its owner, so that only files of dead owners are swept."""
        return f"{self._at}/tmp/{owner.fresh()}"

    # ---- submit

    def submit(self, job: Job) -> JobName:
        """Accept one job: when this returns it survives every crash. JobConflict, SpoolFull, JobRefused."""
        return self.submit_many([job])[0]

    def submit_many(self, jobs: Sequence[Job]) -> list[JobName]:
        """Accept a batch with one sync of each directory; none is acknowledged before all are safe, nor written before
        all are found to be storable."""
        return accept(self, jobs)

    def into_ready(self, source: str, engine: str, name: str) -> None:
        """The rename that makes a job wait. FileNotFoundError when `source` is gone."""
        directory = self.ready_dir(engine)
        while True:
            try:
                fsops.rename(source, f"{directory}/{name}")
                return
            except FileNotFoundError:
                if not os.path.lexists(source):
                    raise
                self.make_ready_dir(engine)

    def make_ready_dir(self, engine: str) -> None:
        """The directory of an engine; synced into its parent, or the jobs in it would not survive power loss."""
        if fsops.make_dir(self.ready_dir(engine)) and self.durable:
            fsops.sync_dir(f"{self._at}/ready")

    # ---- claim and give back

    def list_ready(self, engine: str) -> list[str]:
        """Names waiting for an engine, in the order in which they run."""
        try:
            return sorted(name for name in os.listdir(self.ready_dir(engine)) if parse_job(name) is not None)
        except FileNotFoundError:
            return []

    def list_held(self) -> list[str]:
        """File names in held/."""
        return os.listdir(f"{self._at}/held")

    def claim(self, engine: str, name: JobName, worker: WorkerName) -> Claim | None:
        """Take a job; None when another worker was faster, which is normal."""
        taken = name.claimed()
        path = f"{self._at}/work/{worker}/{taken}"
        try:
            fsops.rename(f"{self._at}/ready/{engine}/{name}", path)
        except FileNotFoundError:
            return None
        return Claim(path, taken, worker)

    def claims(self, worker: WorkerName) -> list[Claim]:
        """What a worker holds."""
        directory = self.work_dir(worker)
        try:
            names = os.listdir(directory)
        except FileNotFoundError:
            return []
        parsed = [(name, parse_job(name)) for name in sorted(names)]
        return [Claim(f"{directory}/{name}", job, worker) for name, job in parsed if job is not None]

    def read_claim(self, claim: Claim, *, arrays: bool = True) -> Job:
        """The job of a claim. ProtocolError when a foreign hand wrote it."""
        job = Job.from_map(codec.decode(fsops.read_bounded(claim.path, MAX_JOB_BYTES), arrays=arrays))
        if job.id != claim.name.id:
            raise ProtocolError(f"the file names job {claim.name.id}, its content {job.id!r}")
        return job

    def release(self, claim: Claim) -> None:
        """Give a job back unharmed: the attempt is not counted."""
        self.into_ready(claim.path, claim.worker.engine, str(claim.name.released()))

    def retry(self, claim: Claim, failure: Failure, *, delay_s: float = 0.0, behind: bool = False) -> None:
        """Give a job back for another attempt, with the reason why this one failed kept beside it. behind: it ended
        its worker, so jobs that did nothing go first."""
        self.note(claim.name.id, failure)
        name = claim.name.behind() if behind else claim.name
        if delay_s > 0:
            due = self.now() + int(delay_s * 1e6)
            fsops.rename(claim.path, f"{self._at}/deferred/{due:016d}.{claim.worker.engine}.{name}")
        else:
            self.into_ready(claim.path, claim.worker.engine, str(name))

    def wake_deferred(self) -> int | None:
        """Move what is due to ready/; the spool time of the next one, None when nothing waits."""
        now, upcoming = self.now(), None
        for entry in sorted(os.listdir(f"{self._at}/deferred")):
            parsed = parse_deferred(entry)
            if parsed is None:
                continue
            due, engine, name = parsed
            if due > now:
                upcoming = due
                break
            with contextlib.suppress(FileNotFoundError):
                self.into_ready(f"{self._at}/deferred/{entry}", engine, str(name))
        return upcoming

    # ---- failure notes

    def note(self, job_id: str, failure: Failure) -> None:
        """Keep the reason of a failed attempt; the first one told about an attempt stays."""
        body = codec.encode(failure.to_map())
        if self._put_first(self.note_path(job_id, failure.attempt), body, self.durable) and self.durable:
            fsops.sync_dir(f"{self._at}/run/attempts")

    def notes(self, job_id: str, attempts: int) -> tuple[Failure, ...]:
        """Reasons of the attempts 1 … attempts that are on record, in order."""
        found = []
        for attempt in range(1, attempts + 1):
            with contextlib.suppress(FileNotFoundError, ProtocolError):
                data = fsops.read_bounded(self.note_path(job_id, attempt), MAX_JOB_BYTES)
                found.append(Failure.from_map(codec.decode(data)))
        return tuple(found)

    # ---- finish

    def finish(self, claim: Claim, record: Record, *, reply: str = "", durable: bool = True) -> bool:
        """Publish the terminal record, then tidy the claim. False when the job was decided before: first wins.

        Media the record names must be in place already. OSError (no space) leaves the claim as it is.
        """
        sync = self.durable and durable
        published = self._publish(record, reply, sync)
        self.tidy(claim, record.state if published else None, attempts=claim.name.attempts)
        return published

    def _publish(self, record: Record, reply: str, sync: bool) -> bool:
        job_id = record.id
        if self.decided(job_id):
            return False
        serial = itertools.count()

        def store(array: object) -> str:
            from pool.arrays import store_array

            # the attempt in the name keeps a late loser from touching the winner's files
            name = f"array-{record.attempt:02d}-{next(serial)}.npy"
            self.make_files_dir(job_id, sync=sync)
            store_array(array, self.temp(), self.files_dir(job_id) / name, sync=sync)
            return name

        try:
            data = codec.encode(record.to_map(), store)
        except ProtocolError as error:  # told from the engine's side: "value" is what it returned
            path = error.path[6:] if error.path.startswith("value.") else error.path
            raise ProtocolError(error.reason, path, error.hint) from None
        if len(data) > MAX_RESULT_BYTES:
            raise ProtocolError(f"a result of {len(data)} bytes", hint="return large data as files or arrays")
        if reply == "json":
            text = codec.to_json(record.to_map()).encode("utf-8", "replace")
            fsops.put(self.temp(), f"{self._at}/out/{job_id}.json", [text], sync=sync)
        published = self._put_first(self.record_path(job_id), data, sync)
        if published and sync:
            fsops.sync_dir(f"{self._at}/out")
        return published

    def _put_first(self, path: str, data: bytes, sync: bool) -> bool:
        """Publish under a name that nobody has taken; False when somebody has."""
        temp = self.temp()
        fsops.write_new(temp, [data], sync=sync)
        try:
            fsops.rename_noreplace(temp, path)
        except OSError as error:
            fsops.unlink(temp, missing_ok=True)
            if isinstance(error, FileExistsError):
                return False
            raise
        return True

    def tidy(self, claim: Claim, state: JobState | None = None, *, attempts: int = 1) -> None:
        """Remove a decided claim, or bury it in dead/ when the record says failed. state None: look it up."""
        if state is None:
            try:
                state = self.read_record(claim.name.id, arrays=False).state
            except FileNotFoundError:
                state = JobState.COMPLETED  # RACE: its caller has consumed it meanwhile
            except ProtocolError:
                state = JobState.FAILED  # nobody can read it: `retry` can run it again
        if state is JobState.FAILED:
            fsops.rename(claim.path, f"{self._at}/dead/{claim.worker.engine}.{claim.name.fresh()}")
        else:
            fsops.unlink(claim.path, missing_ok=True)
        if attempts > 1:
            if state is JobState.COMPLETED:
                self._prove(claim)
            self.forget_notes(claim.name.id, attempts)

    def _prove(self, claim: Claim) -> None:
        """A job failed in another slot and has completed here: its reasons are held against that slot."""
        for failure in self.notes(claim.name.id, claim.name.attempts - 1):
            slot = slot_of(failure)
            if slot and slot != claim.worker.slot and failure.kind not in SAYS_NOTHING:
                note = self.note_path(claim.name.id, failure.attempt)
                with contextlib.suppress(FileNotFoundError):
                    fsops.rename(note, note.removesuffix(SUFFIX) + ".proof")

    def take_proof(self, name: str) -> tuple[str, Failure] | None:
        """Read and remove a proof: (job id, why it failed in another slot); None when there is no such one."""
        parsed = parse_proof(name)
        if parsed is None:
            return None
        path = f"{self._at}/run/attempts/{name}"
        try:
            found = parsed[0], Failure.from_map(codec.decode(fsops.read_bounded(path, MAX_JOB_BYTES)))
        except (OSError, ProtocolError):
            found = None
        fsops.unlink(path, missing_ok=True)
        return found

    def forget_notes(self, job_id: str, attempts: int) -> None:
        for attempt in range(1, attempts + 1):
            fsops.unlink(self.note_path(job_id, attempt), missing_ok=True)

    def requeue(self, entry: str, engine: str, name: JobName) -> None:
        """Run a dead job again. Its record is set aside first, so that no later step can find it decided.

        JobRefused: it would expire at once.
        """
        aside = f"{self._at}/dead/{name.id}.{owner.fresh()}.record"
        with self.ids.lock():  # RACE: the second of two callers would set the record of the new run aside
            try:
                job = self._buried(f"{self._at}/dead/{entry}")
            except FileNotFoundError:
                return
            if job is not None and job.expires and self.now() >= job.expires:
                raise JobRefused(f"job {name.id} has expired: submit it anew to run it all the same", "expires")
            again.mark(self.root, name.id)
            with contextlib.suppress(FileNotFoundError):
                fsops.rename(self.record_path(name.id), aside)
            if self.durable:
                fsops.sync_dir(f"{self._at}/out")
            fsops.unlink(f"{self._at}/out/{name.id}.json", missing_ok=True)
            if job is not None:
                place(self, f"{self._at}/dead/{entry}", job)
            else:
                self.into_ready(f"{self._at}/dead/{entry}", engine, str(name.fresh()))
        if self.durable:
            for folder in waiting_folders(self, job) if job is not None else [self.ready_dir(engine)]:
                fsops.sync_dir(folder)
        fsops.unlink(aside, missing_ok=True)

    def _buried(self, path: str) -> Job | None:
        try:
            return Job.from_map(codec.decode(fsops.read_bounded(path, MAX_JOB_BYTES), arrays=False))
        except ProtocolError:
            return None  # the worker says what is wrong with it

    def decided(self, job_id: str) -> bool:
        return os.path.lexists(self.record_path(job_id))

    def read_record(self, job_id: str, *, arrays: bool = True) -> Record:
        """The terminal record; FileNotFoundError when there is none yet. Arrays open lazily from out/<id>/."""
        data = fsops.read_bounded(self.record_path(job_id), MAX_RESULT_BYTES)
        return Record.from_map(codec.decode(data, directory=self.files_dir(job_id), arrays=arrays))

