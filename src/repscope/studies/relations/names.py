"""Texts that steps write and the page searches for."""


def unmapped(item: str, model: str, known: int, asked: int, needed: int) -> str:
    """Why a relation has no map."""
    return (
        f"{item}: cannot be measured: {model} knows {known} of {asked} facts in every trial, and a map needs {needed}, "
        "in two halves."
    )


ALL_RELATIONS = "all relations"  #: item of numbers over the facts of all relations
