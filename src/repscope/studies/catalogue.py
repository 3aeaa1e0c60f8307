"""The studies: what the command line, the README's table and the tests read. A study is imported when it is asked for."""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from repscope.errors import unknown

if TYPE_CHECKING:
    from repscope.studies.run.study import Study


@dataclass(frozen=True)
class Entry:
    """One study.

    question: one line. module: where its `STUDY` is. command: its words on the command line.
    """

    name: str
    question: str
    module: str
    command: tuple[str, ...]


def _entry(name: str, question: str, module: str, command: str = "") -> tuple[str, Entry]:
    return name, Entry(name, question, f"repscope.studies.{module}", tuple((command or f"study {name}").split()))


#: the ten questions
QUESTIONS: dict[str, Entry] = dict(
    [
        _entry("entities", "Do early MLPs turn the last few tokens of a name into one vector of its attributes?", "entities"),
        _entry("relations", "Is a relation a linear map on the vector of its subject?", "relations"),
        _entry("features", "Which sparse features make up a layer, and a name?", "features"),
        _entry("discover", "Which unsupervised directions move the model, and what does each objective find?", "discover"),
        _entry("drift", "What do fine-tuning, preference optimisation and RL change?", "drift"),
        _entry("context", "Does a prompt full of examples do what fine-tuning on them does?", "context"),
        _entry("bayes", "Is in-context learning Bayesian inference?", "bayes"),
        _entry("paths", "Do runs of one recipe end in one place, and does that predict how they generalise?", "paths"),
        _entry("emergence", "When does a skill appear, and how much compute is a trick worth?", "emergence"),
        _entry("brain", "Does the network represent things as a brain does?", "brain"),
    ]
)
#: what else ends in a page
TOOLS: dict[str, Entry] = dict(
    [
        _entry("contrast", "What is a direction between two kinds of text worth?", "contrast"),
        _entry("compare", "Did tuning change this model: its weights, its representations, its next tokens?", "compare", "compare"),
        _entry(
            "minimal-pairs",
            "Does the model give the acceptable sentence of each minimal pair the higher probability?",
            "minimal_pairs",
            "minimal-pairs",
        ),
        _entry("connect", "Does the loss rise on the straight line between these networks?", "connect", "connect"),
        _entry("verify", "Does the engine read and edit this model correctly?", "verify", "verify"),
        _entry("lens", "Which next token would each block predict if it were the last?", "lens", "lens"),
        _entry("bench-discovery", "Which methods find directions that were planted?", "bench_discovery", "bench discovery"),
    ]
)
ALL = QUESTIONS | TOOLS


def study(name: str) -> "Study[Any]":
    """The study of that name.

    Raises
    ------
    UserError
        When there is none; offers the nearest names.
    """
    if name not in ALL:
        raise unknown("study", name, ALL)
    found: Study[Any] = import_module(ALL[name].module).STUDY
    return found
