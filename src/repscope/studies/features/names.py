"""Names in the tables of the `features` study: autoencoders, metrics, conditions and items."""

EXPLAINED, L0, DEAD = "explained variance", "L0", "dead share"
RECOVERED, KL = "CE recovered", "next-token KL"
MATCHED, FOUND = "matched cosine", "found again"
TOKEN_SHARE = "token share"

DENSE = "dense probe"
NEURONS = "neurons"
DICTIONARY = "random dictionary"
COMPONENTS = "principal components"
WEIGHTS = "random weights"
PERMUTED = "permuted coordinates"
AGAIN = 0.7  #: cosine above which a feature counts as found again

SPARSE = (1, 4, 16, 64)  #: features of k-sparse probes
CLAIMED = 16  #: of those, the number that the verdict is about


def trained(k: int) -> str:
    """The item of an autoencoder."""
    return f"k = {k}"


def probed(attribute: str, features: int) -> str:
    """The item of a k-sparse probe: "countries.continent: 16 features"."""
    return f"{attribute}: {features} feature{'s' if features > 1 else ''}"


def attribute(item: str) -> str:
    """The attribute of such an item: "countries.continent"."""
    return item.rpartition(": ")[0]


def title(item: str) -> str:
    """An attribute in words: "Continent of countries"."""
    where, _, what = attribute(item).rpartition(".") if ": " in item else item.rpartition(".")
    return f"{what.replace('_', ' ').capitalize()} of {where}"
