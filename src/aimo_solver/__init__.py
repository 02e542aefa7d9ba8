"""Solves olympiad maths problems with an open LLM under a hard time limit.

Start here: `solve.solver` -> `solve.attempt` -> `solve.conversation` -> `server.client`.

Every package may import the modules at the top: `config` and `options`, `errors`, `clock`, `problems` and `results` (the records
of problems and attempts), `answers`, and `paths` (where Kaggle mounts things). The docstring of a package says what it is for and
which packages it may import; its ``__all__`` lists the modules that others may import.
"""
