"""Gateways for clients that speak HTTP or Redis: thin clients of FilePool, each a process of its own.

    roots       which files a request may name
    kinds       what an uploaded file is
    tempfiles   uploaded files, kept for a limited time
    http/       python -m pool.gateways.http
    redis/      python -m pool.gateways.redis
    console/    the web page that the HTTP gateway serves

A gateway changes the spool only through FilePool. When a gateway dies, accepted jobs go on without it.
"""
