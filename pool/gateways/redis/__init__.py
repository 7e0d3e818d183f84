"""The Redis gateway: `python -m pool.gateways.redis`. docs/REDIS.md is its reference.

    settings     what config.json, environment and command line say
    wire         the protocol: a job as clients write it, a message as they read it, the names of keys
    link         the connection, and what is said when it is lost
    files        ids of the temporary-file service as paths, results as ids
    remote       a temporary-file service at BASE_URL
    taker        one thread per queue: list -> spool, so that no job is in neither
    herald       progress and ends of jobs -> channel, as soon as Redis is there to hear them
    gateway      all of it, put together

    list --LMOVE--> processing --submit--> spool --MULTI--> accepted (a hash, processing forgets it)
                                                            the last message --MULTI--> accepted forgets it

Whoever dies between two arrows leaves the job where the next start takes it up: the task's id makes a second submit
the same job.
"""
