"""Facts of a relation that the model knows, by few-shot prompting.

1. Each query follows k few-shot examples, in several trials with different examples.
2. First token: the model's next token is a prefix of the object, except for case and space (Hernandez et al. 2024). Full object:
   every token of the object is the most likely one at its position, as in greedy decoding.
3. If the tokenizer encodes a separate blank before every object (often digits), the prompt ends with it, and the next token counts.
4. Baselines without knowledge: the most common object, and a copy of the subject.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from repscope.data.relations import Pair, Relation
from repscope.errors import UserError
from repscope.models.prompts import Prompt, encode
from repscope.models.sites import Tokens
from repscope.read.largest_logits import largest_logits

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

HEAD_ROWS = 256  #: rows per batch of the head
LEAST = 2  #: minimum of distinct objects


@dataclass(frozen=True, eq=False)
class EncodedFacts:
    """A relation, tokenized.

    relation: without objects that the tokenizer cannot encode. blank: end of the prompt (" " if every object begins with a blank
    token, else empty). first: the first informative token of each object.
    """

    relation: Relation
    blank: str
    first: dict[str, int]

    def prompt(self, subject: str, shots: Sequence[Pair] = (), template: int = 0) -> Prompt:
        """As `Relation.prompt`, with the blank."""
        asked = self.relation.prompt(subject, shots, template)
        return replace(asked, text=asked.text + self.blank) if self.blank else asked

    def answered(self, subject: str, obj: str, shots: Sequence[Pair] = (), template: int = 0) -> Prompt:
        """The prompt followed by the object; the span "tail" starts at the prompt's last character."""
        asked = self.relation.prompt(subject, shots, template, answer=obj)
        end = asked.spans["object"][0] - 1 + len(self.blank)
        return replace(asked, spans={**asked.spans, "tail": (end - 1, len(asked.text))})

    def answering(self, lm: "LanguageModel", subject: str, obj: str, shots: Sequence[Pair] = (), template: int = 0) -> Prompt:
        """The prompt followed by the object; the span "answering": the tokens before each token of the object."""
        asked = self.answered(subject, obj, shots, template)
        offsets = lm.tokenizer(asked.text, return_offsets_mapping=True, add_special_tokens=asked.special)["offset_mapping"]
        last = max(a for a, b in offsets if b > a)
        return replace(asked, spans={**asked.spans, "answering": (asked.spans["tail"][0], last)})


@dataclass(frozen=True, eq=False)
class KnownFacts:
    """Correct answers of a model on a relation.

    facts: the relation, all samples. first, full: (trial, sample), correct by either rule. copied: (sample), the subject begins as
    the object.
    """

    facts: EncodedFacts
    first: Bool[np.ndarray, "trial sample"]
    full: Bool[np.ndarray, "trial sample"]
    copied: Bool[np.ndarray, "sample"]

    @property
    def rows(self) -> Int[np.ndarray, "select_known"]:
        """Samples with a correct first token in every trial."""
        return np.flatnonzero(self.first.all(0))

    @property
    def majority(self) -> Bool[np.ndarray, "sample"]:
        """Where the most common object is correct."""
        objects = [o for _, o in self.facts.relation.samples]
        common = Counter(objects).most_common(1)[0][0]
        return np.array([o == common for o in objects])


def encode_facts(lm: "LanguageModel", relation: Relation) -> EncodedFacts:
    """Tokenize a relation's objects.

    Raises
    ------
    UserError
        If the tokenizer can encode fewer than two objects.
    """
    tokenizer, first, blanks, lost = lm.tokenizer, dict[str, int](), dict[str, bool](), []
    question = relation.prompt(relation.samples[0][0])
    for obj in relation.objects:
        ids = _after(lm, question, f" {obj}")
        words = [tokenizer.decode([i]) for i in ids]
        written = tokenizer.decode(ids).strip()
        if not ids or written.casefold() != obj.casefold() or (tokenizer.unk_token_id in ids):
            lost.append(obj)
            continue
        blanks[obj] = not words[0].strip() and len(ids) > 1
        first[obj] = ids[1] if blanks[obj] else ids[0]
    mostly = sum(blanks.values()) * 2 > len(blanks)
    odd = [o for o, b in blanks.items() if b != mostly]
    kept = {o: i for o, i in first.items() if o not in odd}
    if len(kept) < LEAST:
        if lost:
            raise UserError(
                f"The tokenizer of {lm.name} cannot spell {lost[0]!r}, an object of {relation.name!r}, and {len(kept)} of "
                f"{len(relation.objects)} objects are left: give objects in the script that it was made for."
            )
        raise UserError(
            f"The relation {relation.name!r} has one object ({relation.objects[0]!r}): any map is right where there is nothing "
            "to tell apart."
        )
    notes = []
    if lost:
        notes.append(f"{relation.name}: {len(lost)} objects that the tokenizer cannot spell are left out ({', '.join(lost[:3])}).")
    if odd:
        notes.append(
            f"{relation.name}: {len(odd)} objects are left out that alone begin {'without' if mostly else 'with'} a blank token."
        )
    shared = sum(n for n in Counter(kept.values()).values() if n > 1)
    if shared:
        notes.append(f"{relation.name}: {shared} of {len(kept)} objects share their first token with another one.")
    rows = [i for i, (_, o) in enumerate(relation.samples) if o in kept]
    left = replace(relation.take(rows), notes=(*relation.notes, *notes))
    return EncodedFacts(left, " " if mostly else "", kept)


def select_known(
    lm: "LanguageModel", relation: Relation, *, shots: int = 5, trials: int = 3, seed: int = 0, template: int = 0
) -> KnownFacts:
    """Query the model on every sample of a relation.

    Parameters
    ----------
    shots
        Few-shot examples per query.
    trials
        Number of trials, each with different examples.

    Raises
    ------
    UserError
        As `encode_facts`; for a relation with too few samples for two sets of examples, and numbers that are not 1 or more.
    """
    if min(shots, trials) < 1:
        raise UserError(f"shots and trials are {shots} and {trials}; each must be 1 or more.")
    held = encode_facts(lm, relation)
    samples = held.relation.samples
    if len(samples) < 2 * shots + 1:
        raise UserError(
            f"The relation {relation.name!r} has {len(samples)} usable samples; {shots} examples need at least {2 * shots + 1}."
        )
    first, full = (np.zeros((trials, len(samples)), dtype=bool) for _ in range(2))
    for trial in range(trials):
        order = np.random.default_rng([seed, trial]).permutation(len(samples))
        sets = [distinct(samples, order, shots), distinct(samples, order[::-1], shots)]
        prompts = []
        for i, (subject, obj) in enumerate(samples):
            given = sets[1] if i in sets[0] else sets[0]
            prompts.append(held.answered(subject, obj, [samples[j] for j in given], template))
        first[trial], full[trial] = _asked(lm, prompts, [o for _, o in samples])
    copied = np.array([o.casefold().startswith(s.casefold()[:3]) for s, o in samples])
    return KnownFacts(held, first, full, copied)


def distinct(samples: Sequence[Pair], order: Sequence[int] | Int[np.ndarray, "sample"], count: int) -> list[int]:
    """The first samples of an order, with different objects if possible."""
    taken: list[int] = []
    for again in (False, True):
        for i in order:
            if len(taken) < count and int(i) not in taken and (again or samples[i][1] not in {samples[j][1] for j in taken}):
                taken.append(int(i))
    return taken


def starts_with(token: str, obj: str) -> bool:
    """Whether a non-empty token is a prefix of an object, except for case and space."""
    said = token.strip().casefold()
    return bool(said) and obj.casefold().startswith(said)


def _asked(
    lm: "LanguageModel", prompts: Sequence[Prompt], objects: Sequence[str]
) -> tuple[Bool[np.ndarray, "prompt"], Bool[np.ndarray, "prompt"]]:
    """Correctness by first token and by full object, in one pass over question and object."""
    acts = lm.hidden_before(prompts, "tail")
    ids = encode(lm.tokenizer, prompts, Tokens.parse("tail.all"), lm.context, causal=lm.causal)
    hidden = acts[lm.last]
    said = most_likely(lm, hidden, normed=True)
    first, full = np.zeros(len(prompts), dtype=bool), np.zeros(len(prompts), dtype=bool)
    for i, obj in enumerate(objects):
        told = said[acts.offsets[i] : acts.offsets[i + 1]]
        first[i] = len(told) > 0 and starts_with(lm.tokenizer.decode([int(told[0])]), obj)
        full[i] = len(told) > 0 and bool((told == ids.ids[i][ids.start[i] + 1 : ids.stop[i]]).all())
    return first, full


def most_likely(lm: "LanguageModel", states: Float[np.ndarray, "row d_model"], *, normed: bool = False) -> Int[np.ndarray, "row"]:
    """Most likely next token of each state, by the final norm (unless `normed`) and the head."""
    if (found := largest_logits(lm, states, normed=normed)) is not None:
        return found
    batches = [states[a : a + HEAD_ROWS].astype(np.float32) for a in range(0, len(states), HEAD_ROWS)]
    return np.concatenate([lm.unembed(batch, normed=normed).argmax(-1) for batch in batches])


def _after(lm: "LanguageModel", question: Prompt, tail: str) -> list[int]:
    """Tokens of a text after a question."""
    ids = lm.tokenizer(question.text + tail, return_offsets_mapping=True, add_special_tokens=False)
    return [i for i, (_, b) in zip(ids["input_ids"], ids["offset_mapping"]) if b > len(question.text)]
