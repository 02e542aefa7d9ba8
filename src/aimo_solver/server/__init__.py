"""Starts, watches and restarts a vLLM server, and streams tokens from it.

`launch` says how it is started, `supervisor` keeps it up, `client` speaks to it; `readahead`, `compile_cache` and `warmup`
shorten its start.

May import: nothing but the top.
"""

__all__ = [
    "client",
    "compile_cache",
    "endpoint",
    "launch",
    "machine",
    "pagecache",
    "process",
    "readahead",
    "supervisor",
    "warmup",
    "wheels",
]
