"""Doors for those who speak HTTP or Redis: thin clients of FilePool, each a process of its own.

    roots       which files a request may name
    kinds       what an uploaded file is
    tempfiles   uploaded files that live a day
    http/       python -m pool.gateways.http

Nothing here changes the spool by itself; whatever happens to a gateway, an accepted job goes on without it.
"""
