"""The spool, protocol 1. This docstring is the specification; every transition is one rename, in one place.

Directories (all on one file system, mode 0700, files 0600)

    in/                 drop box: *.json, *.msgpack under any name, untrusted; only intake reads it
    ready/<engine>/     accepted jobs; they run in the order of their names
    work/<worker>/      claimed; one directory per worker process, <engine>-<index>.<generation>
    held/               <engine>.<job file>: a job that waits for the results of others
    away/               <engine>.<job file>: a job that another machine has; attempts 00: it waits in the cluster, else
                        it was begun there
    deferred/           <due>.<engine>.<job file>: a job, or its next attempt, that waits for its time (16 digits, µs)
    out/<id>.msgpack    the one terminal record; out/<id>/ the files it names; out/<id>.json a rendering
    dead/               <engine>.<job file> of jobs that failed, for `retry`
    quarantine/         what was dropped and is no job, each with a .reason.txt
    progress/<id>       latest progress, replaced; progress/<id>.<attempt>.partial grows by framed records
    run/                supervisor.lock, supervisor.json, heartbeats/, slots/, logs/, clients/, control/, engines/,
                        scratch/, waits/, ids/<id> (a hard link to the job file reserves an id given by the caller),
                        checkpoints/<id> (what the engine saved for the next attempt: see `pool.spool.checkpoints`),
                        attempts/<id>.<attempt>.msgpack (why that attempt failed), clock-<boot>, jobs.* (an index),
                        attempts/<id>.<attempt>.proof (the same, for the supervisor: the job completed in another slot),
                        expiry/<due>.<id> (when a job ends that was not begun),
                        dependants/<id>/<id> (the result of the first one is kept for the second one),
                        cluster/ (only with a port: see `pool.spool.elsewhere`)
    cache/  tmp/        results by content hash; half-written files, named by their owner's process

Names: see `pool.format.names`.

Transitions and their commit points

    submit      tmp -> ready, deferred or held   rename, then fsync of that directory   the job is accepted
    claim       ready -> work             ONE rename that also raises the attempt  the job is ours
    release     work -> ready             rename that takes the attempt back       a drain burns none
    retry       note, then work -> ready or deferred   rename                     another attempt will come; behind
                                                                                   the others when it ended its worker
    let go      held -> ready or deferred  rename                                  its dependencies have completed
    hold        work -> held              rename that takes the attempt back       they have not: power was lost
    due         deferred -> ready         rename                                   by the supervisor
    send        ready -> away             rename                                   another machine is to do it
    begin       away -> away              rename that raises the attempt           it was begun there
    come back   away -> ready             rename                                   nobody there could
    import      tmp -> away               rename, then fsync of away/              another client's job is known here
    finish      media, tmp -> out         no-replace rename, fsync of out/         the job is decided
                then the claim goes       unlink, or rename work, away -> dead     tidying
    requeue     out -> dead, dead -> ready                                         `retry` of a dead job
    seize       held, deferred, ready -> work   rename into work/<engine>-9999.<n>   the supervisor ends a waiting job

A crash between two steps leaves the job where the last commit point put it: state(id) is the furthest-along
directory that holds the id, in the order held, deferred, ready, work, away, out. A claim whose record exists is
decided, and recovery only tidies it; so does the port with a file in away/, which nothing else moves. Readers scan in
flow order; one empty pass proves nothing.

Durable jobs sync file and directory at submit and finish; a claim is not synced: after power loss the job is in
ready/ or in work/, either is recovered; so it is with away/.
"""
