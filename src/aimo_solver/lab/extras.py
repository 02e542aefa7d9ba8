"""Loads packages that only one command or option needs."""

from __future__ import annotations

import importlib
from typing import Any

from aimo_solver.errors import UserError


def load_extra(package: str, remedy: str) -> Any:
    """Imports a module of a package that may be missing.

    Raises:
        UserError: the package is not installed; the message ends with `remedy`.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package.partition(".")[0]:
            raise
        raise UserError(f"this needs {package}, which is not installed; {remedy}") from None
