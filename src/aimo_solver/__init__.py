"""Solves olympiad maths problems with an open LLM under a hard wall clock.

Start here: `solve.solver` -> `solve.attempt` -> `solve.conversation` -> `server.client`.

The modules at the top are what every package may import: options (`options`, `config`), exceptions (`errors`), the clock,
problems, answers, the records of what came of them (`results`), and where Kaggle mounts things (`paths`). Each package says in its docstring what it is for and
what it may import; its ``__all__`` names the modules that other packages may import.
"""
