"""Plans, starts, supervises and restarts a vLLM server, and streams tokens from it.

Start with `launch` (how it is started), `supervisor`, `ladder` (what follows a failed start) and `client`; `readahead`,
`compile_cache` and `warmup` shorten a start; `speculation` is about drafted tokens.

May import: server.inside.
"""

__all__ = [
    "cache_build", "checks", "client", "compile_cache", "completions", "engine", "failures", "flags", "ladder",
    "launch", "machine", "plugin", "process", "readahead", "speculation", "supervisor", "warmup", "wheels",
]  # fmt: skip
