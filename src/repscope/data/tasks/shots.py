"""Prompts of in-context learning: k examples and a query as one text, every part a named span.

    Q: big⏎A: bigger⏎⏎Q: tall⏎A:

The text ends where the output would stand; the space before the output belongs to the output, as in most tokenizers.
"""

import re
from dataclasses import dataclass, field

from repscope.data.tasks.definition import Pair
from repscope.errors import UserError
from repscope.models.prompts import Prompt

_FIELDS = re.compile(r"\{(input|output)\}")


@dataclass(frozen=True)
class Template:
    """How an example is written.

    text: with {input} and then {output} once each; examples follow each other without anything between. before: of the prompt,
    such as an instruction.
    """

    text: str = "Q: {input}\nA: {output}\n\n"
    before: str = ""

    def __post_init__(self) -> None:
        """Refuse a template without its two fields."""
        if _FIELDS.findall(self.text) != ["input", "output"]:
            raise UserError(f"The template {self.text!r} must hold {{input}} and after it {{output}}, once each.")

    @property
    def lead(self) -> str:
        """The white space before the output, which belongs to it."""
        head = self.text.split("{output}")[0]
        return head[len(head.rstrip()) :]

    def question(self, x: str) -> str:
        """The text of a query up to its output."""
        return self.text.split("{output}")[0].rstrip().replace("{input}", x)

    def example(self, pair: Pair) -> str:
        """The text of an example.

        >>> Template().example(("big", "bigger"))
        'Q: big\\nA: bigger\\n\\n'
        """
        return self.question(pair[0]) + self.lead + pair[1] + self.text.split("{output}")[1]


DEFAULT_TEMPLATE = Template()


@dataclass(frozen=True)
class Shots:
    """Examples and a query.

    examples: in order, as they are written (outputs may be shuffled). query: input and correct output. template: how they are
    written. blank: white space of the output that ends the prompt, for tokenizers that encode it as a token of its own.
    """

    examples: tuple[Pair, ...]
    query: Pair
    template: Template = field(default_factory=Template)
    blank: str = ""

    def prompt(self, answer: str | None = None) -> Prompt:
        """The text, with the spans input0, output0, …, `query` (its input), `question` (the whole text up to the output).

        With an `answer` after it: the span `answer`, and `tail`, which begins with the question's last character.

        >>> asked = Shots((("big", "bigger"),), ("tall", "taller")).prompt()
        >>> asked.text
        'Q: big\\nA: bigger\\n\\nQ: tall\\nA:'
        >>> [asked.text[slice(*asked.spans[name])] for name in ("output0", "query")]
        ['bigger', 'tall']
        """
        text, spans = self.template.before, dict[str, tuple[int, int]]()
        for i, pair in enumerate(self.examples):
            start = len(text) + self.template.text.index("{input}")
            spans[f"input{i}"] = (start, start + len(pair[0]))
            after = len(text) + len(self.template.question(pair[0]) + self.template.lead)
            spans[f"output{i}"] = (after, after + len(pair[1]))
            text += self.template.example(pair)
        start = len(text) + self.template.text.index("{input}")
        spans["query"] = (start, start + len(self.query[0]))
        text += self.template.question(self.query[0]) + self.blank
        spans["question"] = (0, len(text))
        if answer is not None:
            whole = text.removesuffix(self.blank) + self.template.lead + answer
            spans |= {"answer": (len(whole) - len(answer), len(whole)), "tail": (len(text) - 1, len(whole))}
            text = whole
        return Prompt(text, {name: (a, b) for name, (a, b) in spans.items() if a < b})
