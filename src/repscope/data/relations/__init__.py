"""Relations: subjects, objects and prompt templates, built in or from a file of the user's."""

from repscope.data.relations.definition import Pair, Relation, of_pairs
from repscope.data.relations.lookup import relation, relation_names

__all__ = ["Pair", "Relation", "of_pairs", "relation", "relation_names"]
