"""How to cite: the file agrees with the package."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_citation_names_the_version_and_the_licence_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    told = dict(re.findall(r"^([a-z-]+): (.+)$", (ROOT / "CITATION.cff").read_text(), re.M))
    assert told["version"] == project["version"]
    assert told["license"] == project["license"]
    assert told["abstract"] == project["description"]
    assert "CITATION.cff" in (ROOT / "README.md").read_text()
