"""Data sets: entities with attributes, labelled texts, user tables, splits, connectomes."""

from typing import Any

__all__ = ["celegans", "edges_to_matrix", "microns", "named_matrix"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from repscope.data import connectomes

        return getattr(connectomes, name)
    raise AttributeError(f"module 'repscope.data' has no attribute {name!r}")
