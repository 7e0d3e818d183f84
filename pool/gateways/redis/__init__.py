"""The Redis gateway: `python -m pool.gateways.redis`. docs/REDIS.md is its reference.

    settings     settings from config.json, the environment and the command line
    wire         the protocol: jobs, messages, names of keys
    link         the connection, and the log of its outages
    files        inputs: file ids to paths; results: paths to file ids
    remote       client of a temporary-file service at BASE_URL
    taker        one thread per queue: list -> spool, so that a job is always in at least one of them
    herald       progress and ends of jobs -> channel, as soon as Redis is reachable
    ends         the last message about a job
    hosts        heartbeats of all hosts of a queue; what dead ones held goes back to the list
    gateway      the takers and the herald around one FilePool

    list --LMOVE--> processing --submit--> spool --MULTI--> accepted (a hash), removed from processing
                                                            last message --MULTI--> removed from accepted

A gateway that dies between two steps leaves the job where the next gateway finds it. The job's id is derived from
the task's id, so a second submit gives the same job.
"""
