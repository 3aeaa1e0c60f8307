"""What the steps of `context` share: the tasks as the tokenizer encodes them, their groups, ways of fine-tuning, and sites."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from repscope.data.relations import relation_names
from repscope.data.requests import requests
from repscope.data.tasks import EncodedTask, encode_task
from repscope.data.tasks import task as task_named
from repscope.data.tasks.built_in import TASKS
from repscope.errors import UserError
from repscope.models.sites import Site
from repscope.studies.context.options import ContextOptions
from repscope.studies.run.study import Setup
from repscope.trace.task_shift import FewShotTuning

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

GROUP = 3  #: least tasks whose vectors are computed together, as each is the control of the others
_VECTORS = (1 / 3, 2 / 3)  #: depths at which one vector is added, besides the last block but one
LEAST_QUERIES = 4


@dataclass
class ContextTask:
    """The options of a run and what its steps make of them once."""

    setup: Setup[ContextOptions]

    @property
    def options(self) -> ContextOptions:
        """The options as they run."""
        return self.setup.options

    @property
    def lm(self) -> "LanguageModel":
        """The network."""
        return self.setup.network

    @cached_property
    def tasks(self) -> tuple[EncodedTask, ...]:
        """All tasks, encoded alike.

        Raises
        ------
        UserError
            For tasks that are not there, that this tokenizer cannot encode, of one name, or with too few items.
        """
        o, found = self.options, list[EncodedTask]()
        for name in o.tasks:
            own = name not in TASKS and name not in relation_names()
            columns = (o.columns[0], o.columns[1]) if own and o.columns else None
            read = task_named(name, columns=columns, **(o.how() if own else {}))
            found.append(encode_task(self.lm.tokenizer, read, shots=o.k, seed=o.seed))
        names = [one.name for one in found]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"Two tasks are named {twice[0]!r}; rename one of the files.")
        if odd := [name for name in names if ", " in name or ": " in name]:
            raise UserError(f"The task {odd[0]!r} has a comma or colon in its name, which items of tables use; rename the file.")
        for one in found:
            if (n := len(one.queries("test", o.queries))) < LEAST_QUERIES:
                raise UserError(f"{one.name!r} has {n} test items, and two halves need {LEAST_QUERIES}; give more pairs.")
        return tuple(found)

    @cached_property
    def groups(self) -> tuple[tuple[EncodedTask, ...], ...]:
        """The tasks in groups of three or more; the vectors of each are one step."""
        parts = np.array_split(np.arange(len(self.tasks)), max(1, len(self.tasks) // GROUP))
        return tuple(tuple(self.tasks[int(i)] for i in part) for part in parts)

    @cached_property
    def tunings(self) -> tuple[FewShotTuning, ...]:
        """Ways of fine-tuning."""
        o = self.options
        if o.upper_blocks > self.lm.blocks:
            raise UserError(f"--upper-blocks is {o.upper_blocks}, and {self.lm.name} has {self.lm.blocks} blocks; give fewer.")
        first = self.lm.blocks - o.upper_blocks if o.upper_blocks else None
        made = {
            "LoRA": FewShotTuning("LoRA", o.steps, o.lora_rate, rank=o.lora_rank, alpha=2.0 * o.lora_rank),
            "full": FewShotTuning("full", o.steps, o.full_rate, first_block=first),
        }
        return tuple(made[method] for method in o.methods)

    def check_heads(self) -> None:
        """Refuse more heads than half of the network's, as random ones are a control, and networks whose heads do not add."""
        _ = self.lm.resolve("head_out")
        total = sum(self.lm.tap(site).heads for site in self.lm.resolve("z"))
        if 2 * self.options.heads > total:
            raise UserError(
                f"--heads is {self.options.heads}, and {self.lm.name} has {total} heads; give at most half, as random heads "
                "are a control."
            )

    @cached_property
    def blocks(self) -> list[int]:
        """Blocks at which shifts are measured."""
        return sorted(range(self.lm.blocks - 1, -1, -self.options.every))

    @property
    def sites(self) -> list[Site]:
        """Sites of shifts: the residual stream after these blocks, and the outputs of their attention."""
        return [site for kind in ("resid_post", "attn_out") for b in self.blocks for site in self.lm.resolve(f"{kind}.{b}")]

    @cached_property
    def vector_sites(self) -> list[Site]:
        """Where one vector is to recover an adaptation: at three depths, of the blocks at which shifts are measured."""
        last = len(self.blocks) - 1
        chosen = {round(depth * last) for depth in _VECTORS} | {max(last - 1, 0)}
        return [self.lm.resolve(f"resid_post.{self.blocks[i]}")[0] for i in sorted(chosen)]

    @cached_property
    def tuned(self) -> "LanguageModel":
        """The tuned network that a constant prompt is compared with."""
        from repscope.models.loading.sources import load

        o = self.options
        assert o.tuned is not None
        return load(o.tuned, device=o.device, dtype=o.dtype)

    @cached_property
    def documents(self) -> tuple[list[str], tuple[str, ...]]:
        """What the tuned network answers, the user's requests or built-in ones, and notes."""
        o = self.options
        seen, held, notes = requests(o.documents, **o.how())
        return [*seen, *held][: o.answers], notes

    @cached_property
    def example_tokens(self) -> float:
        """Tokens of an example, on average over tasks."""
        texts = [task.template.example(pair) for task in self.tasks for pair in task.split.train[:8]]
        return float(np.mean([len(ids) for ids in self.lm.tokenizer(texts, add_special_tokens=False)["input_ids"]]))
