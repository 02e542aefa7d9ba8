"""Runs the model's Python in pooled, isolated IPython kernels.

`pool` leases sessions; `session`, `process` and `spawner` are the solver's side, `inside` is what runs in the kernels'
processes. `limits` and `text` are shared by both sides.

May import: nothing but the top-level modules.
"""

__all__ = ["limits", "pool", "session", "text"]
