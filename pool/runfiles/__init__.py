"""The small files in run/ by which the processes of a pool know of each other."""
