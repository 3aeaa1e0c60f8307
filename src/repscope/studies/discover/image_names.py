"""Names of metrics, items and splits of `discover` on image generators."""

GAN, DIFFUSION = "gan", "diffusion"
SPRITES, DIGITS = "sprites", "digits"

GAIN = "gain"
HELD_OUT = "held-out samples"
BASELINE = "L2"
CONTRASTIVE, BOTH = "contrastive", "L2 + contrastive"
PUBLISHED = {GAN: "LatentCLR", DIFFUSION: "NoiseCLR"}


def model(subject: str, data: str = SPRITES) -> str:
    """The name of a generator."""
    return f"{data}-{subject}"


def gained(method: str, metric: str) -> str:
    """The item of a method's gain in a metric."""
    return f"{method}: {metric}"
