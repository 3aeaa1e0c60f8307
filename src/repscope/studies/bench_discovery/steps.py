"""Benchmark unsupervised direction discovery against planted ground truth: one step per setting."""

from functools import partial

from repscope.errors import UserError, unknown
from repscope.results import Result
from repscope.studies.bench_discovery.options import BenchOptions
from repscope.studies.bench_discovery.settings import SETTINGS
from repscope.studies.run.study import Context, Cost, Setup, Step, Subject

_FLOPS = {
    "planted-mlp": 4e10,
    "planted-transformer": 4e11,
    "lm": 3e14,
    "gan": 1e12,
    "digits": 1e12,
    "ddpm": 1e13,
}  #: of a network and its methods, about; measured


def subject(setup: Setup[BenchOptions]) -> Subject:
    """The planted networks, or the model of `lm`.

    Raises
    ------
    UserError
        For an unknown setting or kind, and a model where the setting brings its own.
    """
    o = setup.options
    _check(o)
    name = f"{o.setting}{'-tiny' if o.tiny else ''}"
    if o.setting == "lm":
        lm = setup.network
        return Subject(name, lm.fingerprint, {"model": lm.name, "precision": lm.source.precision, "fingerprint": lm.fingerprint})
    model = f"{o.setting.replace('planted-', 'planted ')} {', '.join(_whole(o).kinds)}"
    libraries = ("diffusers",) if o.setting == "ddpm" else ()
    return Subject(name, model, {"model": model, "precision": ""}, libraries=libraries)


def steps(setup: Setup[BenchOptions]) -> list[Step]:
    """The setting."""
    o = _whole(setup.options)
    cost = Cost(network_flops=_FLOPS[o.setting] * (o.seeds or 1) * max(1, len(o.kinds)) / (100 if o.tiny else 1))
    return [Step("bench", partial(_bench, setup, o), lambda: cost)]


def _bench(setup: Setup[BenchOptions], o: BenchOptions, context: Context) -> Result:
    return SETTINGS[o.setting].run(o, lambda: setup.network)


def _check(o: BenchOptions) -> None:
    if o.setting not in SETTINGS:
        raise unknown("setting of the benchmark", o.setting, SETTINGS)
    for kind in o.kinds:
        if kind not in SETTINGS[o.setting].kinds:
            raise unknown(f"kind of network in the setting {o.setting}", kind, SETTINGS[o.setting].kinds)
    if o.model and o.setting != "lm":
        raise UserError(f"The setting {o.setting} draws its own networks; --model goes with --setting lm.")
    if o.model and o.tiny:
        raise UserError("--tiny brings its own model; omit --model.")


def _whole(o: BenchOptions) -> BenchOptions:
    """With the setting's own numbers for options that were not given."""
    setting = SETTINGS[o.setting]
    sizes = {"seeds": 1 if o.tiny else setting.seeds, "n": 4 if o.tiny else setting.n, "kinds": setting.kinds}
    return o.model_copy(update={k: v for k, v in sizes.items() if not getattr(o, k)})
