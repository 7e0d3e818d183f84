"""The commands: `python -m pool …` and `python -m pool.submit`."""
