"""How selective can a direction be? The judge of image directions on sprites themselves, and directions fitted with labels.

    python benchmarks/image_judge.py [--write]

| way | what is moved |
|---|---|
| sprites | one factor of a sprite by one standard deviation, no generator: the most that the judge can say |
| regression | the generator's vector, along a regression of factors (of the diffusion model: word for high minus word for low) |
| orthogonal | along each of these without what it shares with the others |
| local | along the pseudo-inverse of the factors' Jacobian at each image: the best straight line of that image |
| local path | the same in four steps, with the Jacobian taken again at each: a curve (of the GAN, where it costs seconds) |

All but the first have the scale of `repscope study discover --subject gan|diffusion`. Mean and 95 % interval over five sets of
held-out images. The generators are those of the cache; they are trained if there are none.
"""

import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from repscope import stats
from repscope.discovery.generators.closed_form import orthogonalised
from repscope.discovery.generators.comparison import DOSES
from repscope.discovery.generators.factor_changes import FactorChanges, factor_changes
from repscope.discovery.generators.judge_ceiling import judge_ceiling
from repscope.discovery.generators.sprite_material import SpriteMaterial, SpriteSetting
from repscope.report.text import format_estimate
from repscope.worlds.sprites import FACTORS, drawn_factors, sprites

TABLE = Path(__file__).with_name("RESULTS-image-judge.md")
SETS, PATH, SMALL = 5, 4, 0.05
SETTINGS = {"gan": {}, "diffusion": {"samples": 6, "images": 24}}
COLUMNS = ("selectivity", "factor change", "distinct factors", "factors reached")


def factors_of(material: SpriteMaterial, vectors: torch.Tensor) -> torch.Tensor:
    """Factors of the held-out images with vectors (direction, image, width)."""
    images = material.bed.images(vectors)
    return torch.unflatten(material.judge.read(images.flatten(0, 1)), 0, images.shape[:2])


def jacobian(material: SpriteMaterial, at: torch.Tensor) -> torch.Tensor:
    """(image, factor, width) at vectors (image, width), by central differences."""
    step = SMALL * material.bed.scale
    basis = step * torch.eye(at.shape[1])[:, None]
    ahead, behind = (factors_of(material, at + sign * basis) for sign in (1, -1))
    return ((ahead - behind) / (2 * step)).permute(1, 2, 0)


def local_directions(material: SpriteMaterial, at: torch.Tensor) -> torch.Tensor:
    """(factor, image, width): to first order each moves its factor alone."""
    inverse = torch.linalg.pinv(jacobian(material, at).double())
    return functional.normalize(inverse, dim=1).float().permute(2, 0, 1)


def along_path(material: SpriteMaterial, factor: int) -> list[torch.Tensor]:
    """Vectors (image, width) at each dose, from the unedited images outwards on both sides."""
    scale, found = material.bed.scale, {0.0: torch.zeros(material.bed.held, material.bed.context.width)}
    for sign in (1, -1):
        at = found[0.0]
        for i in range(PATH):
            at = at + sign * scale / PATH * local_directions(material, at)[factor]
            found[sign * (i + 1) / PATH] = at
    return [found[dose] for dose in DOSES]


def judged(material: SpriteMaterial, vectors: torch.Tensor) -> FactorChanges:
    """vectors: (dose, direction, image, width)."""
    read = torch.stack([factors_of(material, at) for at in vectors])
    return factor_changes(read.numpy(), np.asarray(DOSES))


def straight(material: SpriteMaterial, unit: torch.Tensor) -> torch.Tensor:
    """unit: (direction, image, width)."""
    return torch.stack([dose * material.bed.scale * unit for dose in DOSES])


def ways(kind: str, material: SpriteMaterial, number: int) -> dict[str, FactorChanges]:
    bed, judge = material.bed, material.judge
    some = drawn_factors(SETTINGS[kind].get("images", 64), torch.Generator().manual_seed(5000 + number))
    labelled = material.labelled()
    assert labelled is not None
    local = local_directions(material, torch.zeros(bed.held, bed.context.width))
    alone = orthogonalised(torch.from_numpy(labelled)).numpy()
    rows = {
        "sprites": judge_ceiling(judge.read, sprites, some, DOSES),
        "regression": judged(material, straight(material, bed.every(labelled / np.linalg.norm(labelled, axis=1, keepdims=True)))),
        "orthogonal": judged(material, straight(material, bed.every(alone))),
        "local": judged(material, straight(material, local)),
    }
    if kind == "gan":
        paths = [along_path(material, j) for j in range(len(FACTORS))]
        rows["local path"] = judged(material, torch.stack([torch.stack(at) for at in zip(*paths)]))
    return rows


def main() -> None:
    torch.set_num_threads(1)
    lines = []
    for kind, more in SETTINGS.items():
        arrays = SpriteSetting(kind, **more).trained()
        found: dict[str, list[FactorChanges]] = {}
        for number in range(SETS):
            material = SpriteMaterial(SpriteSetting(kind, **more), arrays)
            held_out(material, number)
            for way, changes in ways(kind, material, number).items():
                found.setdefault(way, []).append(changes)
        for way, sets in found.items():
            cells = [
                format_estimate(asdict(stats.mean([value(one) for one in sets], unit="set of images")))
                for value in (
                    lambda c: float(c.selectivity.mean()),
                    lambda c: float(c.change.mean()),
                    lambda c: float(c.distinct),
                    lambda c: float(c.reached),
                )
            ]
            lines.append(f"| {kind} | {way} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    head = [
        "# Directions of image generators: what the judge can say",
        "",
        "Six directions, one per factor; mean and 95 % interval over five sets of held-out images. Written by",
        "`benchmarks/image_judge.py --write`, which says what is moved in each row.",
        "",
        "| generator | moved | " + " | ".join(COLUMNS) + " |",
        "|---|---" + "|---" * len(COLUMNS) + "|",
    ]
    if "--write" in sys.argv:
        TABLE.write_text("\n".join([*head, *lines]) + "\n")


def held_out(material: SpriteMaterial, number: int) -> None:
    """Other held-out samples."""
    bed, seed = material.bed, 7000 + number
    if material.setting.kind == "gan":
        bed.z = bed.generator.latents(bed.held, seed)
    else:
        bed.start = bed.generator.noise(bed.held, seed)


if __name__ == "__main__":
    main()
