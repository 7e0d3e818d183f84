"""`python -m pool.submit`: submit a job, follow it, print its result."""

from pool.cli.submit import main as main

if __name__ == "__main__":
    main()
