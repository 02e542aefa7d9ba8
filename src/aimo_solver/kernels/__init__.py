"""Runs the model's Python in pooled, isolated Jupyter kernels.

`pool` leases sessions; `session`, `process` and `spawner` are the solver's side of a kernel, `inside` is the other.
`limits` says what a kernel may use; both sides import it.

May import: nothing but the top.
"""

__all__ = ["limits", "pool", "session", "terminal"]
