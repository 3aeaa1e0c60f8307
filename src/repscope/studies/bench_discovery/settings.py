"""The settings of the discovery benchmark: what is planted, and the metrics of tables and figures."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from repscope.bench import discovery, generators, trigger
from repscope.results import Result
from repscope.studies.bench_discovery.options import BenchOptions
from repscope.worlds.planted import functions, transformer
from repscope.worlds.planted.trigger import Recipe

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel


@dataclass(frozen=True)
class Setting:
    """One row of the table of settings.

    says: what is planted where. run: from the options and what loads the model of `lm`. seeds, n: defaults. kinds: of networks.
    columns: numbers of the printed table, those first that a terminal shows. drawn: numbers with a figure, and its axis.
    """

    says: str
    run: Callable[[BenchOptions, "Callable[[], LanguageModel]"], Result]
    seeds: int
    n: int
    kinds: tuple[str, ...]
    columns: tuple[str, ...]
    drawn: tuple[tuple[str, str], ...]


def _mlp(o: BenchOptions, load: "Callable[[], LanguageModel]") -> Result:
    return discovery.planted_mlp(o.kinds, o.seeds or 0, seed=o.seed, n=o.n or 0, steps=2 if o.tiny else None)


def _transformer(o: BenchOptions, load: "Callable[[], LanguageModel]") -> Result:
    return discovery.planted_transformers(o.kinds, o.seeds or 0, seed=o.seed, n=o.n or 0, steps=2 if o.tiny else None)


def _lm(o: BenchOptions, load: "Callable[[], LanguageModel]") -> Result:
    few: dict[str, Any] = {"steps": 2, "recipe": Recipe(steps=2, first=0.25, stop=0.5)} if o.tiny else {}
    return trigger.trigger_benchmark(load(), o.seeds or 0, seed=o.seed, n=o.n or 0, **few)


def _gan(o: BenchOptions, load: "Callable[[], LanguageModel]") -> Result:
    return generators.generator_benchmark("gan", o.seeds or 0, seed=o.seed, n=o.n or 0, steps=2 if o.tiny else None, tiny=o.tiny)


def _digits(o: BenchOptions, load: "Callable[[], LanguageModel]") -> Result:
    return generators.generator_benchmark(
        "gan", o.seeds or 0, data="digits", seed=o.seed, n=o.n or 0, steps=2 if o.tiny else None, tiny=o.tiny
    )


def _ddpm(o: BenchOptions, load: "Callable[[], LanguageModel]") -> Result:
    return generators.generator_benchmark(
        "diffusion", o.seeds or 0, seed=o.seed, n=o.n or 0, steps=2 if o.tiny else None, tiny=o.tiny
    )


_IMAGES = ("distinct factors", "selectivity", "factor change", "monotonicity", "overlap", "stability", "sprites explained", "cost")
_MORE_IMAGES = ("factors reached", "effective rank", "consistency", "image change")
_PLANTED = ("recovered", "mmcs", "false", "reached", "overlap", "consistency", "stability", "cost")
_LATER = ("size per spread", "rank", "half dose")
SETTINGS: dict[str, Setting] = {
    "planted-mlp": Setting(
        "Directions are planted in functions of 64 dimensions: 12 features that add to a residual stream.",
        _mlp,
        5,
        discovery.SOUGHT,
        tuple(functions.FUNCTION_KINDS),
        (*_PLANTED, *_LATER),
        (("recovered", "share of features recovered"),),
    ),
    "planted-transformer": Setting(
        "Directions are written into the MLP of a random transformer, 12 features; methods have the same access as in real models.",
        _transformer,
        5,
        discovery.SOUGHT_TRANSFORMER,
        tuple(transformer.NEURON_KINDS),
        (*_PLANTED, *_LATER, "kl"),
        (("recovered", "share of features recovered"), ("mmcs", "best |cos| with a feature, mean over features")),
    ),
    "lm": Setting(
        "A language model is fine-tuned to write a sentence if the prompt contains a trigger word. Directions are "
        "searched on prompts without that word.",
        _lm,
        5,
        trigger.SOUGHT,
        (),
        ("elicits", "gain", "best gain", "kl", "overlap", "consistency", "stability", "cost", *_LATER),
        (("elicits", "share of directions that elicit the sentence"), ("best gain", "largest gain, nats per token")),
    ),
    "gan": Setting(
        "A GAN draws sprites of six known factors. Directions are sought in its latent and judged by the factors they change.",
        _gan,
        5,
        generators.SOUGHT,
        (),
        (*_IMAGES, *_MORE_IMAGES),
        (("selectivity", "selectivity for one factor"), ("distinct factors", "factors found alone")),
    ),
    "digits": Setting(
        "A GAN draws handwritten digits. Directions are sought in its latent and judged by the classes that they change images to.",
        _digits,
        5,
        10,
        (),
        (*(m.replace("sprites", "digits") for m in _IMAGES), *_MORE_IMAGES),
        (("selectivity", "selectivity for one class"), ("distinct factors", "classes found alone")),
    ),
    "ddpm": Setting(
        "A diffusion model draws sprites of six known factors. Directions are sought in the vectors of the words it attends to.",
        _ddpm,
        3,
        8,
        (),
        (*_IMAGES, *_MORE_IMAGES),
        (("selectivity", "selectivity for one factor"), ("distinct factors", "factors found alone")),
    ),
}
