"""REMEDI: editors that turn what a text says of an entity into a change of the entity's vector.

Hernandez, Li & Andreas 2023, arXiv 2304.00740.

`facts`: sentences and questions about subjects and new objects. `editor`: linear and affine editors as files. `objective`: the
loss. `training`: editors of one layer, trained above it only. `evaluation`: efficacy, generalisation, specificity and essence.
`inspection`: how far a vector holds an attribute already.
"""

from repscope.steer.fact_editing import Change, changed_logits
from repscope.steer.remedi.editor import Editor, random_editor
from repscope.steer.remedi.evaluation import essence, outcomes
from repscope.steer.remedi.facts import EditFact, edit_facts
from repscope.steer.remedi.inspection import held_already
from repscope.steer.remedi.objective import Losses, Prepared, Weights, edit_losses, prepare
from repscope.steer.remedi.training import Trained, train_editor

__all__ = [
    "Change",
    "EditFact",
    "Editor",
    "Losses",
    "Prepared",
    "Trained",
    "Weights",
    "changed_logits",
    "edit_facts",
    "edit_losses",
    "essence",
    "held_already",
    "outcomes",
    "prepare",
    "random_editor",
    "train_editor",
]
