"""Several machines: the same pool, with NATS JetStream between the spools of the machines.

    client machine                     NATS servers                        node (each machine that works)
    spool  <->  port process   <->   stream JOBS, buckets, media   <->   agent process  <->  spool, workers

A client submits into a spool of its own, its branch of the cluster. The *port* of that branch sends the jobs to the
stream and brings progress and results back, into the same directories that workers of this machine would write. The
*agent* of a node fetches jobs for free workers, submits them into the spool of its machine, and sends back what they
end with. Neither holds anything that is not in a spool or on the servers: both may be killed at any instruction.

    wire        names of streams, buckets and subjects, and what is sent, checked on arrival
    link        the connection; complaints: what is said of it, seldom
    objects     files in the object store, in the messages of every client of NATS
    media       files by their SHA-256, kept for as long as somebody needs them
    mediacache  media on the disk of a node
    parcels     parameters with media in place of paths
    landing     the files of a result, and where they go
    shared      paths and URLs that all machines see; sharedfiles: the files at such URLs
    port        client side: sending, receiving, events, revoking, attaching, directory; traffic: what they share
    agent       node side: presence, fetching (through pulling), claims, carrying (jobs: carried, local)
    tasks       loops and tasks that outlive errors
    accounts    who may do what on the servers
    topology    streams and buckets, created once
    nats_server a nats-server as a child, and the configuration of several
    hosting     its command
"""
