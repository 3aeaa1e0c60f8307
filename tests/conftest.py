"""Fixtures: tiny models of each family, and the default model, loaded once."""

import hypothesis
import pytest
import transformers

from families import FAMILIES, build, build_tokenizer

# A machine that does something else meanwhile is slow, not wrong.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")


def pytest_report_header():
    """Which transformers is tested: `make test-oldest` puts another one before the environment's own."""
    return f"transformers {transformers.__version__} from {transformers.__file__}"


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
