"""One worker: its loop, its engine, one attempt at a time. Never imports a client or a supervisor."""
