"""Options of the `context` study."""

from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from repscope.studies.run.options import ModelOptions, Sizes, TableOptions, files_in

TASKS = (
    "singular-plural",
    "present-past",
    "present-gerund",
    "adjective-superlative",
    "capitalize",
    "first-letter",
    "country-capital",
    "next-item",
)
_LEAST_TASKS = 3  #: for a match over tasks


class ContextOptions(ModelOptions, TableOptions):
    """Options of the `context` study."""

    SHORT: ClassVar[Sizes] = {"tasks": ("singular-plural", "present-past", "capitalize", "first-letter"), "k": 4, "queries": 8}
    SHORT |= {"dev_items": 4, "mean_prompts": 4, "effect_prompts": 1, "methods": ("LoRA",), "steps": (2, 4), "every": 5}
    TINY: ClassVar[Sizes] = {"tasks": ("singular-plural", "capitalize", "first-letter"), "k": 2, "queries": 4, "dev_items": 2}
    TINY |= {"heads": 2, "mean_prompts": 2, "effect_prompts": 1, "steps": (1, 2), "lora_rate": 2e-2, "full_rate": 1e-3, "every": 2}

    tasks: tuple[str, ...] = Field(
        TASKS,
        description="Tasks: built-in names (singular-plural, country-capital …), tables with the columns input and output, or JSON "
        "of the function-vectors repository; three or more, four or more for a verdict on the match.",
    )
    columns: tuple[str, ...] = Field((), description="Your tables' columns of input and output, where they have other names.")
    k: int = Field(5, ge=2, description="Examples per prompt, and examples to fine-tune on.")
    queries: int = Field(16, ge=4, description="Test queries per task, at most; half of them choose blocks and scales.")
    dev_items: int = Field(8, ge=1, description="Held-out items that choose blocks of vectors and the number of steps.")
    heads: int = Field(10, ge=1, description="Attention heads in a function vector.")
    mean_prompts: int = Field(8, ge=1, description="Prompts for the mean activations of heads, and for task vectors.")
    effect_prompts: int = Field(4, ge=1, description="Prompts for the indirect effects of all heads.")
    methods: tuple[Literal["LoRA", "full"], ...] = Field(("LoRA", "full"), description="Ways of fine-tuning: LoRA, full.")
    steps: tuple[int, ...] = Field((1, 2, 4, 8), description="Steps of fine-tuning after which networks are evaluated.")
    lora_rate: float = Field(1e-2, gt=0, allow_inf_nan=False, description="Learning rate of LoRA.")
    lora_rank: int = Field(4, ge=1, description="Rank of LoRA.")
    full_rate: float = Field(1.5e-4, gt=0, allow_inf_nan=False, description="Learning rate of full fine-tuning.")
    upper_blocks: int = Field(0, ge=0, description="Upper blocks that full fine-tuning changes; all weights if 0.")
    every: int = Field(1, ge=1, description="Shifts are measured at every so many blocks, counted from the last.")

    tuned: str | None = Field(None, description="A tuned version of the model, to compare a constant prompt with.")
    prompt_file: str | None = Field(None, description="Text file with the constant prompt; {document} in it is the request.")
    documents: str | None = Field(None, description="Requests for it: .txt with one per line, or a table with the column text.")
    answers: int = Field(20, ge=2, description="Requests, at most.")
    new_tokens: int = Field(24, ge=1, description="Tokens of the tuned model's answer to each request.")
    chat: bool = Field(False, description="Whether the tuned model reads requests in its chat template.")

    @field_validator("tasks")
    @classmethod
    def _enough_tasks(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(tasks)) < len(tasks):
            raise ValueError("a task is named twice; name each once")
        if len(tasks) < _LEAST_TASKS:
            raise ValueError(f"{len(tasks)} tasks cannot be matched; name {_LEAST_TASKS} or more")
        return tasks

    @field_validator("columns")
    @classmethod
    def _input_and_output(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        if columns and (len(columns) != 2 or columns[0] == columns[1]):
            raise ValueError("give two different columns, that of the inputs and that of the outputs")
        return columns

    @field_validator("methods")
    @classmethod
    def _each_method_once(cls, methods: tuple[Any, ...]) -> tuple[Any, ...]:
        if not methods or len(set(methods)) < len(methods):
            raise ValueError("name each way of fine-tuning once, and at least one: LoRA, full")
        return methods

    @field_validator("steps")
    @classmethod
    def _steps_increase(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if not steps or steps[0] < 1 or any(a >= b for a, b in pairwise(steps)):
            raise ValueError("give increasing numbers of steps from 1 on, such as 1 2 4 8")
        return steps

    @model_validator(mode="after")
    def _belongs(self) -> "ContextOptions":
        if self.dtype != "float32":
            raise ValueError(f"fine-tuning of a few steps needs weights in float32, not {self.dtype}; omit --dtype")
        if self.columns and all(not Path(name).suffix for name in self.tasks):
            raise ValueError("--columns is of your tables, and --tasks names none")
        if (self.tuned is None) != (self.prompt_file is None):
            raise ValueError("a constant prompt is compared with a tuned model; give both --tuned and --prompt-file, or neither")
        if self.tuned is None and (given := self.given("documents", "answers", "new_tokens", "chat")):
            raise ValueError(f"{given[0]} is of the constant prompt; give --tuned and --prompt-file as well")
        if self.tuned is not None and self.tiny:
            raise ValueError("--tiny brings its own model, with random weights; omit --tuned and --prompt-file")
        for option, method in (("lora_rate", "LoRA"), ("lora_rank", "LoRA"), ("full_rate", "full"), ("upper_blocks", "full")):
            if method not in self.methods and (given := self.given(option)):
                raise ValueError(f"{given[0]} is of the method {method}, which --methods does not name")
        return self

    def files(self) -> list[Path]:
        """The user's own tasks, prompt and requests, and the tuned model where it is a folder."""
        return files_in(*self.tasks, self.prompt_file, self.documents, self.tuned)
