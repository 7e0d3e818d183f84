"""The HTTP gateway: `python -m pool.gateways.http`. docs/HTTP.md is its reference.

settings     what config.json, environment and command line say
app          make_app(pool, settings): the ASGI application, put together
guard        token, limits, foreign pages: before anything else sees a request
bodies       bounded JSON and streamed multipart
errors       every failure as a true status and a message in the form that its client knows
desk         what all routes share: the pool, one look at it for many, who waits for which job
ledger       jobs that ended, remembered for lists and metrics
human, tempfile, jobs, events, speech, state, metrics     the routes
"""
