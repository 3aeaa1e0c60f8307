"""What stands before a query: k examples, permuted or another task's examples, or neutral text of the same number of tokens.

The query's tokens are the same in all contexts and stand at the same position, so that differences are due to what stands before.

    few-shot                 the k examples of the task, one draw for all queries
    permuted shots           the same, each with the output of another one
    shots of another task    k examples of another task, chosen so that they are as many tokens
    neutral prefix           text about something else, cut to as many tokens, then the template's end of an example
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from repscope.conditions import FEW_SHOT, OTHER_SHOTS, SHUFFLED_SHOTS
from repscope.data.tasks import EncodedTask, Shots
from repscope.data.tasks.definition import Pair
from repscope.errors import UserError
from repscope.models.prompts import special_tokens
from repscope.models.sites import Tokens

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

Ids = Int[np.ndarray, "token"]
NEUTRAL_TEXT = (
    "The river rises in the hills and runs slowly to the sea. In spring its water is high and brown, and the lower fields are "
    "wet for some weeks. Most of the villages stand on the northern bank, where the ground is firm. A road follows the valley, "
    "and beside it runs an old railway that has not been used for many years. In summer people come from the city and walk along "
    "the water in the evening. There is a mill near the second bridge, and behind it a wood of oak and ash. "
)
_TRIES = 400  #: random orders; exchanges of one example for another while token counts are matched


@dataclass(frozen=True, eq=False)
class Contexts:
    """Contexts of a task's queries as token ids.

    queries: those that are the same tokens after the examples and alone. prefixes: condition → what stands before the query.
    neutral: number of tokens → neutral text. tails: per query, its own tokens. alone: per query, its tokens as a prompt without
    examples. examples, permuted: the k examples, with their outputs and permuted.
    notes: where token counts differ, queries are left out, or outputs could not all be permuted.
    """

    queries: tuple[Pair, ...]
    prefixes: dict[str, Ids]
    neutral: dict[int, Ids]
    tails: tuple[Ids, ...]
    alone: tuple[Ids, ...]
    examples: tuple[Pair, ...]
    permuted: tuple[Pair, ...]
    notes: tuple[str, ...]

    def prompts(self, condition: str) -> list[Ids]:
        """All queries after a condition's prefix."""
        return [np.concatenate([self.prefixes[condition], tail]) for tail in self.tails]

    def base(self, condition: str = FEW_SHOT) -> list[Ids]:
        """All queries after neutral text that is as long as a condition's prefix."""
        return [np.concatenate([self.neutral[len(self.prefixes[condition])], tail]) for tail in self.tails]


def contexts(lm: "LanguageModel", task: EncodedTask, other: EncodedTask, queries: Sequence[Pair], *, seed: int = 0) -> Contexts:
    """The contexts of a task's queries.

    Raises
    ------
    UserError
        For tasks whose templates or numbers of examples differ, fewer than two examples, outputs that are all the same, a query
        among the examples' inputs, and if no query is the same tokens after examples as alone.
    """
    if other.template != task.template or other.shots != task.shots:
        raise UserError(f"{task.name!r} and {other.name!r} have other templates or numbers of examples; encode both alike.")
    if task.shots < 2:
        raise UserError(f"The outputs of {task.shots} examples of {task.name!r} cannot be permuted; encode two or more.")
    rng = np.random.default_rng([seed, task.seed, 11])
    given = _drawn(task, rng)
    if used := {x for x, _ in given} & {x for x, _ in queries}:
        raise UserError(f"The query {min(used)!r} of {task.name!r} is among its examples; take queries of the dev or test part.")
    permuted = _permuted(given, rng)
    asked = _same_tokens(lm, task, given, queries)
    if not asked:
        raise UserError(f"All {len(queries)} queries of {task.name!r} are other tokens after examples; use another template.")
    alone = tuple(alone_ids(lm, task, query) for query in asked)
    size = len(_prefix(lm, task, given, asked[0], alone[0])[0])
    other_examples = _of_length(lm, task, other, asked, size, rng)
    prefixes, tails = dict[str, Ids](), list[Ids]()
    for condition, examples in ((FEW_SHOT, given), (SHUFFLED_SHOTS, permuted), (OTHER_SHOTS, other_examples)):
        for query, own in zip(asked, alone):
            prefix, tail = _prefix(lm, task, examples, query, own)
            if not np.array_equal(prefix, prefixes.setdefault(condition, prefix)):
                raise UserError(f"The examples of {task.name!r} are other tokens before {query[0]!r} than before other queries.")
            tails += [tail] if condition == FEW_SHOT else []
    notes = [
        f"{task.name}: {condition} are {len(prefix)} tokens and few-shot {size}; each is compared with neutral text of its length."
        for condition, prefix in prefixes.items()
        if len(prefix) != size
    ]
    if lost := [x for x, y in queries if (x, y) not in asked]:
        notes.append(
            f"{task.name}: {len(lost)} queries are left out, whose tokens differ after examples and alone ({', '.join(lost[:3])})."
        )
    if kept := sum(a == b for a, b in zip(given, permuted)):
        notes.append(f"{task.name}: {kept} of {task.shots} examples have their own output after permutation, as outputs repeat.")
    neutral = {n: _neutral(lm, task, prefixes[FEW_SHOT], n) for n in sorted({len(prefix) for prefix in prefixes.values()})}
    return Contexts(asked, prefixes, neutral, tuple(tails), alone, given, permuted, tuple(notes))


def alone_ids(lm: "LanguageModel", task: EncodedTask, query: Pair) -> Ids:
    """Token ids of a query without examples."""
    return _ids(lm, Shots((), query, task.template, task.blank))


def _ids(lm: "LanguageModel", shots: Shots) -> Ids:
    ids: Ids = lm.encoded([shots.prompt()], Tokens("last")).ids[0]
    return ids


def _drawn(task: EncodedTask, rng: np.random.Generator) -> tuple[Pair, ...]:
    """k examples of the train part, not all with one output."""
    train = task.split.train
    for _ in range(_TRIES):
        found = tuple(train[int(i)] for i in rng.permutation(len(train))[: task.shots])
        if len({y for _, y in found}) > 1:
            return found
    raise UserError(f"{task.shots} examples of {task.name!r} nearly always have one output; encode more examples.")


def _permuted(examples: Sequence[Pair], rng: np.random.Generator) -> tuple[Pair, ...]:
    """The examples with outputs permuted: of several random orders, one that leaves the fewest as they were."""
    outputs = [y for _, y in examples]
    tried = [rng.permutation(len(outputs)) for _ in range(_TRIES)]
    best = min(tried, key=lambda order: sum(outputs[int(j)] == y for j, y in zip(order, outputs)))
    return tuple((x, outputs[int(j)]) for j, (x, _) in zip(best, examples))


def _same_tokens(lm: "LanguageModel", task: EncodedTask, examples: Sequence[Pair], queries: Sequence[Pair]) -> tuple[Pair, ...]:
    """The queries that are the same tokens after the examples as alone."""
    kept = []
    for query in queries:
        whole, own = _ids(lm, Shots(tuple(examples), query, task.template, task.blank)), _own(lm, task, alone_ids(lm, task, query))
        if len(whole) > len(own) > 0 and np.array_equal(whole[len(whole) - len(own) :], own):
            kept.append(query)
    return tuple(kept)


def _own(lm: "LanguageModel", task: EncodedTask, alone: Ids) -> Ids:
    """A query's ids without what stands before every prompt."""
    start, _ = special_tokens(lm.tokenizer, causal=lm.causal)
    before = len(lm.tokenizer(task.template.before, add_special_tokens=False)["input_ids"]) if task.template.before else 0
    return alone[len(start) + before :]


def _prefix(lm: "LanguageModel", task: EncodedTask, examples: Sequence[Pair], query: Pair, alone: Ids) -> tuple[Ids, Ids]:
    """Ids before the query, and its own."""
    whole, own = _ids(lm, Shots(tuple(examples), query, task.template, task.blank)), _own(lm, task, alone)
    if len(whole) <= len(own) or not np.array_equal(whole[len(whole) - len(own) :], own):
        raise UserError(f"The query {query[0]!r} of {task.name!r} is other tokens after examples than alone; use another template.")
    return whole[: len(whole) - len(own)], own


def _of_length(
    lm: "LanguageModel", task: EncodedTask, other: EncodedTask, queries: Sequence[Pair], size: int, rng: np.random.Generator
) -> tuple[Pair, ...]:
    """k examples of another task that are `size` tokens before the query, or as near as exchanges come."""
    asked = {x for x, _ in queries}
    pool = [pair for pair in other.split.train if pair[0] not in asked]
    if len(pool) < task.shots:
        raise UserError(f"{other.name!r} has {len(pool)} examples that are no query of {task.name!r}; {task.shots} are needed.")
    texts = [other.template.example(pair) for pair in pool]
    lengths = np.array([len(row) for row in lm.tokenizer(texts, add_special_tokens=False)["input_ids"]])
    chosen = [int(i) for i in rng.permutation(len(pool))[: task.shots]]
    short = size - len(_prefix(lm, task, [pool[i] for i in chosen], queries[0], alone_ids(lm, task, queries[0]))[0])
    for _ in range(_TRIES):
        if not short:
            break
        place, new = int(rng.integers(len(chosen))), int(rng.integers(len(pool)))
        gain = int(lengths[new] - lengths[chosen[place]])
        if new not in chosen and abs(short - gain) < abs(short):
            chosen[place], short = new, short - gain
    return tuple(pool[i] for i in chosen)


def _neutral(lm: "LanguageModel", task: EncodedTask, prefix: Ids, size: int) -> Ids:
    """Neutral text of so many tokens, which begins and ends as the examples do."""
    start, _ = special_tokens(lm.tokenizer, causal=lm.causal)
    end = task.template.text.split("{output}")[1]
    closing = np.asarray(lm.tokenizer(end, add_special_tokens=False)["input_ids"] if end else [], dtype=np.int64)
    if not np.array_equal(prefix[len(prefix) - len(closing) :], closing):
        closing = closing[:0]
    text = np.asarray(lm.tokenizer(NEUTRAL_TEXT, add_special_tokens=False)["input_ids"], dtype=np.int64)
    space = size - len(start) - len(closing)
    if space < 1:
        raise UserError(f"The examples of {task.name!r} are {size} tokens, too few for neutral text of that length.")
    return np.concatenate([start, np.resize(text, space), closing])
