"""Runs the command line: ``python -m aimo_solver.cli``."""

from aimo_solver.cli.main import app

app()
