"""A task as a tokenizer encodes it: first tokens and all tokens of the answers, prompts with drawn examples, and what differs.

1. Each distinct output is encoded after a question. Outputs whose tokens merge with the question's are left out.
2. If the tokenizer encodes a separate blank before every output (often digits), the blank ends the prompt.
3. Outputs that begin with the same token cannot be told apart by it: all of them is an error, some of them a note.
4. Examples and queries should be the same tokens alone and inside a prompt; the notes say where they are not.

Examples are always drawn from the train part of the split. Knows no network.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from repscope.data.tasks.definition import Pair, Split, Task
from repscope.data.tasks.shots import DEFAULT_TEMPLATE, Shots, Template
from repscope.errors import UserError


@dataclass(frozen=True, eq=False)
class EncodedTask:
    """A task for one tokenizer, with a split and a number of examples per prompt.

    task: without outputs that the tokenizer cannot encode. split: its items. template: how examples are written. shots: examples
    per prompt. blank: what ends each prompt (" " or empty). answers: token ids of each output after the prompt. seed: of the split
    and all draws. notes: of the task and its encoding.
    """

    task: Task
    split: Split
    template: Template
    shots: int
    blank: str
    answers: dict[str, tuple[int, ...]]
    seed: int
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.name

    def first(self, output: str) -> int:
        """The first token of an output."""
        return self.answers[output][0]

    def zero_shot(self, queries: Sequence[Pair]) -> list[Shots]:
        """The queries without examples."""
        return [Shots((), query, self.template, self.blank) for query in queries]

    def few_shot(self, queries: Sequence[Pair], *, shuffled: bool = False, stream: int = 0) -> list[Shots]:
        """Each query after its own random examples from the train part, never the query itself.

        Parameters
        ----------
        shuffled
            Whether each example has the output of another one (a random cyclic permutation of the examples). Inputs and their
            order are those of the unshuffled prompts of the same stream.
        stream
            Number of the random stream; streams are independent.

        Raises
        ------
        UserError
            If outputs are to be shuffled and there are fewer than two examples.
        """
        if shuffled and self.shots < 2:
            raise UserError(f"The outputs of {self.shots} examples of {self.name!r} cannot be shuffled; encode two or more.")
        return [self._drawn(query, i, shuffled, stream) for i, query in enumerate(queries)]

    def queries(self, part: str, most: int) -> tuple[Pair, ...]:
        """At most so many random items of `train`, `dev` or `test`."""
        pairs: tuple[Pair, ...] = getattr(self.split, part)
        order = np.random.default_rng([self.seed, 7]).permutation(len(pairs))[:most]
        return tuple(pairs[int(i)] for i in order)

    def _drawn(self, query: Pair, i: int, shuffled: bool, stream: int) -> Shots:
        pool = [pair for pair in self.split.train if pair[0] != query[0]]
        rng = np.random.default_rng([self.seed, stream, i])
        examples = [pool[int(j)] for j in rng.permutation(len(pool))[: self.shots]]
        if shuffled:
            order = rng.permutation(self.shots)
            outputs = [examples[int(j)][1] for j in order]
            for place, output in zip(order, outputs[1:] + outputs[:1]):
                examples[int(place)] = (examples[int(place)][0], output)
        return Shots(tuple(examples), query, self.template, self.blank)


def encode_task(
    tokenizer: Any, task: Task, *, shots: int = 10, template: Template = DEFAULT_TEMPLATE, split: Split | None = None, seed: int = 0
) -> EncodedTask:
    """Encode a task's answers, split it, and check its prompts.

    Parameters
    ----------
    tokenizer
        A Hugging Face tokenizer.
    shots
        Examples per prompt.
    split
        By default half of the items for train, a fifth for dev, the rest for test.
    seed
        Of the split and of all draws of examples.

    Raises
    ------
    UserError
        If there are fewer train items than examples and one query, the first tokens of the outputs are all the same, or fewer than
        two outputs can be encoded.
    """
    answers, blank, notes = _answers(tokenizer, task, template)
    kept = tuple(pair for pair in task.pairs if pair[1] in answers)
    usable = replace(task, pairs=kept)
    if split is None:
        parts = usable.split(seed)
    else:
        parts = Split(*(tuple(p for p in part if p[1] in answers) for part in (split.train, split.dev, split.test)))
    if shots < 0 or shots + 1 > len(parts.train):
        raise UserError(
            f"The task {task.name!r} has {len(parts.train)} items for training prompts, and {shots} examples with one query need "
            f"{shots + 1}: ask for fewer examples or give more pairs."
        )
    found = (*task.notes, *notes, *tokenization_differences(tokenizer, usable, template))
    return EncodedTask(usable, parts, template, shots, blank, answers, seed, found)


def tokenization_differences(tokenizer: Any, task: Task, template: Template = DEFAULT_TEMPLATE) -> tuple[str, ...]:
    """Where examples and queries are other tokens inside a prompt than alone: a sentence for each kind; empty if nowhere.

    White space between examples and special tokens are not counted. A tokenizer that puts a blank before every text differs
    everywhere.
    """

    def ids(texts: Sequence[str]) -> list[list[int]]:
        return [list(row) for row in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]

    examples = [template.example(pair) for pair in task.pairs]
    questions = [template.question(x) for x in task.inputs]
    bare = [example.rstrip() for example in examples]
    before = [examples[i - 1] for i in range(len(examples))]  # each after another item of the task
    own, asked = ids(bare), ids(questions)
    inside, last = ids([a + b for a, b in zip(before, bare)]), ids([a + b for a, b in zip(before, questions)])
    found = []
    for kind, alone, among in (("examples", own, inside), ("queries", asked, last)):
        other = [
            i for i, row in enumerate(among) if row[len(row) - len(alone[i]) :] != alone[i] or row[: len(own[i - 1])] != own[i - 1]
        ]
        if other:
            found.append(
                f"{task.name}: {len(other)} of {len(task)} {kind} are other tokens after an example than alone, such as "
                f"{task.inputs[other[0]]!r}."
            )
    return tuple(found)


def _answers(tokenizer: Any, task: Task, template: Template) -> tuple[dict[str, tuple[int, ...]], str, list[str]]:
    """Token ids of each output after the prompt, the blank that ends the prompt, and notes."""
    question = template.question(task.inputs[0])
    own = list(tokenizer(question, add_special_tokens=False)["input_ids"])
    found, lost = dict[str, tuple[int, ...]](), []
    unknown = getattr(tokenizer, "unk_token_id", None)
    for output in task.outputs:
        whole = list(tokenizer(question + template.lead + output, add_special_tokens=False)["input_ids"])
        ids = whole[len(own) :]
        if whole[: len(own)] != own or not ids or unknown in ids:
            lost.append(output)
        else:
            found[output] = tuple(ids)
    blanks = {y for y, ids in found.items() if len(ids) > 1 and not tokenizer.decode([ids[0]]).strip()}
    mostly = len(blanks) * 2 > len(found)
    odd = [y for y in found if (y in blanks) != mostly]
    if mostly:
        found = {y: ids[1:] for y, ids in found.items() if y in blanks}
    else:
        found = {y: ids for y, ids in found.items() if y not in blanks}
    notes = []
    for some, why in ((lost, "the tokenizer merges with the prompt or cannot encode"), (odd, "alone differ in a blank token")):
        if some:
            notes.append(f"{task.name}: {len(some)} outputs are left out that {why} ({', '.join(some[:3])}).")
    if len(found) < 2:
        raise UserError(
            f"The tokenizer encodes {len(found)} of the {len(task.outputs)} outputs of {task.name!r} after {question!r} as tokens "
            "of their own; give other outputs or another template."
        )
    counts = Counter(ids[0] for ids in found.values())
    if len(counts) == 1:
        raise UserError(
            f"All outputs of {task.name!r} begin with the token {tokenizer.decode([next(iter(counts))])!r}, which cannot separate "
            "them; give a template that ends with what they share, or other outputs."
        )
    if shared := sum(n for n in counts.values() if n > 1):
        notes.append(f"{task.name}: {shared} of {len(found)} outputs share their first token with another one.")
    return found, " " if mostly else "", notes
