"""What the pool costs, beside what the files alone cost: docs/BENCH.md. `python -m bench` runs all."""
