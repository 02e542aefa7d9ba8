"""Imports the notebook's build script as a module."""

from __future__ import annotations

import sys

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import build_notebook
from notebook_settings import NotebookError

__all__ = ["NotebookError", "build_notebook"]
