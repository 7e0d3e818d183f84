"""What a caller uses: FilePool, futures, lists of jobs, status. Never imports a worker or a supervisor."""
