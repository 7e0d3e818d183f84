"""Several machines, all of them this one: filepool's cluster beside celery and dask.distributed, in the same run.

    pip install ".[cluster,peers]"
    python -m bench.cluster               # the table, docs/CLUSTER_BENCH.md and its picture
    python -m bench.cluster one three     # filepool alone, with one server and with three

A node is what one machine would run, with two workers: for filepool an agent, a supervisor and workers on a spool of
their own, for celery a worker with two processes, for dask a worker command with two workers. What is measured stands
in ``measure.py``, how each system is driven in ``ours.py`` and ``others.py``, what is written in ``report.py``.
"""
