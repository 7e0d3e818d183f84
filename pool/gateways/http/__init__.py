"""The HTTP gateway: `python -m pool.gateways.http`. docs/HTTP.md is its reference.

settings     settings from config.json, the environment and the command line
app          make_app(pool, settings): the ASGI application
guard        token, rate limits, cross-site requests: checked before any route runs
bodies       bounded JSON and streamed multipart
errors       every failure as an HTTP status and a message in the format of its API
asks         requests that wait for a job, so that one asked again finds it
desk         what all routes share: the pool, its cached status, the waits for jobs
lists        lists of jobs
origins      what a job was submitted with
ledger       jobs that ended, kept for lists and metrics
human, tempfile, jobs, bulk, edits, events, live, speech, state, metrics     the routes
"""
