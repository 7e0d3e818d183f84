"""What travels: jobs, failures, records, progress. Frozen, each with its map on disk.

request     Job: what a job file holds
terms       how it is to be run (priority, retries, moments, tags …)
record      Record: its end; Progress: how far it is
kept        what its record keeps of it
heads       the first part of a job file or record, for lists
references  results of other jobs among its parameters
"""

from pool.failure import Failure as Failure
from pool.failure import FailureKind as FailureKind
from pool.failure import earlier as earlier
from pool.job.record import Progress as Progress
from pool.job.record import Record as Record
from pool.job.record import decode_failure as decode_failure
from pool.job.request import Job as Job
from pool.job.request import digest_of as digest_of
from pool.job.request import packed as packed
from pool.job.states import TERMINAL as TERMINAL
from pool.job.states import WAITING as WAITING
from pool.job.states import JobState as JobState
