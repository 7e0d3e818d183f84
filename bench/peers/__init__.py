"""filepool beside the tools people use instead: the same work, the same machine, the same run.

    pip install ".[peers]"
    python -m bench.peers                 # the table and docs/images/peers.png
    python -m bench.peers filepool rq     # some of them

Each peer runs in a process of its own with two warm workers, set up as its documentation says for work that should
survive a crash. What is measured stands in ``measure.py``, how each is driven in ``local.py`` and ``served.py``.
"""
