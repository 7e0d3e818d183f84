"""Engines: what runs inside a worker.

An engine is any class that follows :class:`inference.base.Engine`; the pool finds it by name
(``"engine": "inference.transcribe:Transcribe"``) and knows nothing else about it. This package imports
nothing from ``pool``, and importing it loads no model library: torch, CTranslate2 and the like are
imported inside ``Engine.load``, in the worker that needs them.
"""
