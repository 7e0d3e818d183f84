"""Every transition of a job, as one rename in one place. The protocol is in the docstring of `pool.spool`."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Sequence

from pool.constants import MAX_JOB_BYTES, MAX_RESULT_BYTES
from pool.errors import JobRefused, ProtocolError
from pool.format import codec
from pool.format.names import SUFFIX, JobName, WorkerName, parse_deferred, parse_job, parse_proof
from pool.job import Failure, Job, JobState, Record, decode_failure
from pool.policy.blame import SAYS_NOTHING, slot_of
from pool.spool import checkpoints, fsops, owner, reuse
from pool.spool.acceptance import accept
from pool.spool.fsops import NO_SPACE as NO_SPACE
from pool.spool.placement import place, waiting_folders
from pool.spool.tree import Claim as Claim
from pool.spool.tree import Tree


class Spool(Tree):
    """One spool. Not bound to a process: every method may be called by clients, workers and supervisors."""

    # ---- submit

    def submit(self, job: Job) -> JobName:
        """Accept one job: when this returns it survives every crash. JobConflict, SpoolFull, JobRefused."""
        return self.submit_many([job])[0]

    def submit_many(self, jobs: Sequence[Job]) -> list[JobName]:
        """Accept a batch with one sync of each directory; none is acknowledged before all are safe, nor written before
        all are found to be storable."""
        return accept(self, jobs)

    # ---- claim and give back

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
        """The job of a claim. ProtocolError when its file is not one of ours."""
        return self.read_file(claim.path, claim.name, arrays=arrays)

    def read_file(self, path: str, name: JobName, *, arrays: bool = True) -> Job:
        """The job in a file of that name. ProtocolError when it is not one of ours."""
        job = Job.from_map(codec.decode(fsops.read_bounded(path, MAX_JOB_BYTES), arrays=arrays))
        if job.id != name.id:
            raise ProtocolError(f"the file names job {name.id}, its content {job.id!r}")
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
        """Keep the reason of a failed attempt; the first reason of an attempt stays."""
        body = codec.encode(failure.to_map())
        if self.put_first(self.note_path(job_id, failure.attempt), body, self.durable) and self.durable:
            fsops.sync_dir(f"{self._at}/run/attempts")

    def notes(self, job_id: str, attempts: int, *, first: int = 1) -> tuple[Failure, ...]:
        """Reasons of the attempts first … attempts that are on record, in order."""
        found = []
        for attempt in range(first, attempts + 1):
            with contextlib.suppress(FileNotFoundError, ProtocolError):
                data = fsops.read_bounded(self.note_path(job_id, attempt), MAX_JOB_BYTES)
                found.append(decode_failure(codec.decode(data)))
        return tuple(found)

    # ---- finish

    def finish(self, claim: Claim, record: Record, *, reply: str = "", durable: bool = True) -> bool:
        """Publish the terminal record, then tidy the claim. False when the job was decided before: first wins.

        Media the record names must be in place already. OSError (no space) leaves the claim as it is.
        """
        sync = self.durable and durable
        published = self.publish(record, reply, sync)
        self.tidy(claim, record.state if published else None, attempts=claim.name.attempts)
        return published

    def publish(self, record: Record, reply: str, sync: bool) -> bool:
        """Write the terminal record and nothing else; False when there is one. Raises ProtocolError, OSError."""
        job_id = record.id
        if self.decided(job_id):
            return False
        serial = itertools.count()

        def store(array: object) -> str:
            from pool.spool.arrays import store_array

            # the attempt in the name keeps a late loser from touching the winner's files
            name = f"array-{record.attempt:02d}-{next(serial)}.npy"
            self.make_files_dir(job_id, sync=sync)
            store_array(array, self.temp(), self.files_dir(job_id) / name, sync=sync)
            return name

        try:
            data = codec.encode(record.to_map(), store)
        except ProtocolError as error:  # the path as the engine's author knows it: "value" is what run() returned
            path = error.path[6:] if error.path.startswith("value.") else error.path
            raise ProtocolError(error.reason, path, error.hint) from None
        if len(data) > MAX_RESULT_BYTES:
            raise ProtocolError(f"a result of {len(data)} bytes", hint="return large data as files or arrays")
        if reply == "json":
            text = codec.to_json(record.to_map()).encode("utf-8", "replace")
            fsops.put(self.temp(), f"{self._at}/out/{job_id}.json", [text], sync=sync)
        published = self.put_first(self.record_path(job_id), data, sync)
        if published and sync:
            fsops.sync_dir(f"{self._at}/out")
        return published

    def put_first(self, path: str, data: bytes, sync: bool) -> bool:
        """Publish under a new name; False when the name is taken."""
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
        """Remove a decided claim, or move it to dead/ when the record says failed. state None: look it up."""
        state = self.reap(claim.path, claim.worker.engine, claim.name, state)
        if attempts > 1:
            if state is JobState.COMPLETED:
                self._prove(claim)
            self.forget_notes(claim.name.id, attempts)
            checkpoints.forget(self, claim.name.id)

    def reap(self, path: str, engine: str, name: JobName, state: JobState | None) -> JobState:
        """Remove the file of a decided job, or move it to dead/ when its record says failed; what that says."""
        if state is None:
            try:
                state = self.read_record(name.id, arrays=False).state
            except FileNotFoundError:
                state = JobState.COMPLETED  # RACE: its caller has consumed it meanwhile
            except ProtocolError:
                state = JobState.FAILED  # it is damaged: `retry` can run the job again
        if state is JobState.FAILED:
            fsops.rename(path, f"{self._at}/dead/{engine}.{name.fresh()}")
        else:
            fsops.unlink(path, missing_ok=True)
        return state

    def _prove(self, claim: Claim) -> None:
        """A job that failed in another slot has completed here: keep its failures as evidence against that slot."""
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
            found = parsed[0], decode_failure(codec.decode(fsops.read_bounded(path, MAX_JOB_BYTES)))
        except (OSError, ProtocolError):
            found = None
        fsops.unlink(path, missing_ok=True)
        return found

    def forget_notes(self, job_id: str, attempts: int) -> None:
        """Remove the reasons of the attempts 1 … attempts."""
        for attempt in range(1, attempts + 1):
            fsops.unlink(self.note_path(job_id, attempt), missing_ok=True)

    def requeue(self, entry: str, engine: str, name: JobName) -> None:
        """Run a dead job again. Its record is set aside first, so that no later step can find it decided.

        JobRefused: it would expire at once.
        """
        aside = f"{self._at}/dead/{name.id}.{owner.fresh()}.record"
        with self.ids.lock():  # RACE: the second of two callers would set the record of the new run aside
            try:
                job = self._dead_job(f"{self._at}/dead/{entry}")
            except FileNotFoundError:
                return
            if job is not None and job.expires and self.now() >= job.expires:
                raise JobRefused(f"job {name.id} has expired: submit it anew to run it all the same", "expires")
            reuse.mark(self.root, name.id)
            with contextlib.suppress(FileNotFoundError):
                fsops.rename(self.record_path(name.id), aside)
            if self.durable:
                fsops.sync_dir(f"{self._at}/out")
            fsops.unlink(f"{self._at}/out/{name.id}.json", missing_ok=True)
            checkpoints.forget(self, name.id)
            if job is not None:
                place(self, f"{self._at}/dead/{entry}", job)
            else:
                self.into_ready(f"{self._at}/dead/{entry}", engine, str(name.fresh()))
        if self.durable:
            for folder in waiting_folders(self, job) if job is not None else [self.ready_dir(engine)]:
                fsops.sync_dir(folder)
        fsops.unlink(aside, missing_ok=True)

    def _dead_job(self, path: str) -> Job | None:
        try:
            return Job.from_map(codec.decode(fsops.read_bounded(path, MAX_JOB_BYTES), arrays=False))
        except ProtocolError:
            return None  # the worker says what is wrong with it

    def read_record(self, job_id: str, *, arrays: bool = True) -> Record:
        """The terminal record; FileNotFoundError when there is none yet. Arrays open lazily from out/<id>/."""
        data = fsops.read_bounded(self.record_path(job_id), MAX_RESULT_BYTES)
        return Record.from_map(codec.decode(data, directory=self.files_dir(job_id), arrays=arrays))
