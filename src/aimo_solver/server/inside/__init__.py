"""The code that runs in vLLM's processes: its plugins.

`server.plugin` puts them where vLLM finds them. They import the standard library and, when vLLM calls them, vLLM.

May import: nothing but the top-level modules.
"""

__all__ = ["experts"]
