"""This machine and its processes: clocks, /proc, signals, events of the file system. Knows nothing of jobs."""
