"""Names of metrics, items and splits of `discover` on image generators."""

GAN, DIFFUSION = "gan", "diffusion"
MODELS = {GAN: "sprites-gan", DIFFUSION: "sprites-diffusion"}

R2 = "factor R²"
AGREEMENT = "factor agreement"
COVERAGE = "coverage"
EXPLAINED = "sprites explained"
CEILING = "selectivity of sprites"
OF_GENERATOR = {
    R2: "R² of the factor regressor on held-out sprites",
    AGREEMENT: "R² between the factors that two regressors of different seeds read from the generator's images",
    COVERAGE: "share of ten bins of a factor's range that hold at least one percent of the generator's images",
    CEILING: "selectivity that the judge reads from sprites of which this factor alone changes, by one standard deviation: the "
    "most that a direction can reach",
    EXPLAINED: "share of the variance of the generator's images that the sprites of the factors read explain",
}
GAIN = "gain"
HELD_OUT = "held-out samples"
BASELINE = "L2"
CONTRASTIVE, BOTH = "contrastive", "L2 + contrastive"
PUBLISHED = {GAN: "LatentCLR", DIFFUSION: "NoiseCLR"}


def gained(method: str, metric: str) -> str:
    """The item of a method's gain in a metric."""
    return f"{method}: {metric}"
