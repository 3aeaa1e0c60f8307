"""Fixtures: tiny models of each family, and the default model, loaded once."""

import gc
import marshal
import sys

import hypothesis
import pytest
import transformers

from families import FAMILIES, build, build_tokenizer
from processes import Processes
from tiny_runs import TinyRuns, session_folder

# A machine that does something else meanwhile is slow, not wrong.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")


def pytest_report_header():
    """Which transformers is tested: `make test-oldest` puts another one before the environment's own."""
    return f"transformers {transformers.__version__} from {transformers.__file__}"


def pytest_collection_modifyitems(items):
    """Long tests first, so that the workers of xdist finish together.

    Those of the default model in a row, as each worker loads it, and those that start processes, as each worker starts a server.
    """
    items.sort(
        key=lambda item: (
            item.get_closest_marker("model") is None,
            "processes" not in item.fixturenames,
            "/studies/" not in str(item.path),
        )
    )


def pytest_collection_finish():
    """What was imported stays: the garbage collector need not look at it again and again."""
    if "altair" in sys.modules:
        _validate_equal_parts_of_charts_once()
        _check_charts_of_pages()
    gc.collect()
    gc.freeze()


def _validate_equal_parts_of_charts_once():
    """Most axes, scales and titles of a page are equal, and altair validates each of them; this is half of the time of a page."""
    from altair.utils import schemapi

    validate, valid = schemapi.validate_jsonschema, {}

    def validated(spec, schema, rootschema=None, *, raise_error=True):
        try:
            key = marshal.dumps((spec, schema, id(rootschema)), 2)
        except ValueError:  # holds more than plain values
            return validate(spec, schema, rootschema, raise_error=raise_error)
        if key not in valid:
            if (error := validate(spec, schema, rootschema, raise_error=raise_error)) is not None:
                return error
            valid[key] = rootschema  # kept, so that its id stays its own
        return None

    schemapi.validate_jsonschema = validated


def _check_charts_of_pages():
    """Pages leave the check against Vega-Lite's schema to the tests."""
    from repscope.report import page

    page.spec_of = lambda chart: dict(chart.to_dict())


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="session", params=list(FAMILIES))
def family(request, tokenizer):
    """(family's name, LanguageModel) for each family."""
    from repscope.models.language import LanguageModel

    return request.param, LanguageModel(build(request.param), tokenizer, request.param)


@pytest.fixture(scope="session")
def llama(tokenizer):
    from repscope.models.language import LanguageModel

    return LanguageModel(build("llama"), tokenizer, "llama")


@pytest.fixture(scope="session")
def smollm():
    """The default model, from the user's cache or fetched and converted now."""
    import repscope as rs

    return rs.load()


@pytest.fixture(scope="session")
def processes():
    """Starts processes that find everything imported; see `processes.py`."""
    return Processes()


@pytest.fixture(scope="session")
def tiny_runs(tmp_path_factory):
    """Finished tiny runs of the studies: `tiny_runs.copied(NAME, folder)`."""
    home = session_folder(tmp_path_factory) / "tiny-runs"
    home.mkdir(exist_ok=True)
    return TinyRuns(home)
