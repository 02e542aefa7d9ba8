"""Solves olympiad maths problems with an open LLM under a hard time limit.

Start here: `solve.solver` -> `solve.attempt` -> `solve.conversation` -> `server.client`.

Every package may import the modules at the top: `config` and `options`, `errors`, `clock`, `problems` and `results` (the records
of problems and attempts), `answers`, and `paths` (where Kaggle mounts things). The docstring of a package says what it is for and
which packages it may import; its ``__all__`` lists the modules that others may import.

`aimo_solver.read_run(path)` reads a run directory and returns a `RunRecord`; docs/reading-runs.ipynb shows it.
"""

import importlib

__all__ = ["RunRecord", "read_run"]


def __getattr__(name: str) -> object:
    """Loads a name of ``__all__`` when it is first used, as kernels import this package too. `__init__.pyi` has the types."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.log.reader"), name)
