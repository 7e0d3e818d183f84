"""`python -m pool.submit`: give a job to the pool, watch it, print its result."""

from pool.cli.submit import main as main

if __name__ == "__main__":
    main()
