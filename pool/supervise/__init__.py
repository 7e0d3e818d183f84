"""The supervisor: its slots, its verdicts, and what becomes of jobs. Never imports a client or a worker."""
