"""Plans, starts, supervises and restarts a vLLM server, and streams tokens from it.

Start with `launch` (how it is started), `supervisor` and `client`; `readahead`, `compile_cache` and `warmup` shorten its start,
`speculation` is about drafted tokens.

May import: nothing but the top-level modules.
"""

__all__ = [
    "cache_build",
    "client",
    "compile_cache",
    "completions",
    "flags",
    "launch",
    "machine",
    "pagecache",
    "process",
    "readahead",
    "speculation",
    "supervisor",
    "warmup",
    "wheels",
]
