"""A generator with a latent: any torch module that maps z (row, …) to images, such as the generator of a GAN.

Sites: the latent z, which is the module's input (`module:#in`), and the features that methods compare, the output of any module.
Nothing of the module is changed.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from repscope.arrays import as_tensor
from repscope.errors import UserError
from repscope.models.engine.fingerprint import of_module
from repscope.models.engine.hooks import first_tensor
from repscope.models.generators.partial_pass import output_of, submodule

LATENT_SITE = "module:#in"
_DIFFER_IN_TRAINING = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)


@dataclass(eq=False)
class LatentGenerator:
    """A generator of images. Latents are tensors, arrays or lists.

    module: maps latents to images, in evaluation mode. latent: width of z. features_at: path of the module whose
    output `features` gives; "" for the images. shape: of one row as the module takes it, (latent) by default; (latent, 1, 1) for
    generators of convolutions. name: in results.

    Raises a `UserError` if norms over the batch or dropout are in training mode, if the module takes no such latent, has no module
    at `features_at`, or gives a latent another image beside other latents or in another call.
    """

    module: nn.Module = field(repr=False)
    latent: int
    features_at: str = ""
    shape: tuple[int, ...] = ()
    name: str = "generator"
    model: str = field(default="", init=False)

    def __post_init__(self) -> None:
        """Check the latent on two rows."""
        if not isinstance(self.module, nn.Module):
            raise UserError(
                f"A generator is a torch module, and this is of {type(self.module).__name__}; wrap it in a torch.nn.Module."
            )
        if any(part.training for part in self.module.modules() if isinstance(part, _DIFFER_IN_TRAINING)):
            raise UserError("The generator is in training mode, in which images depend on the batch; call eval() on it first.")
        self.shape = self.shape or (self.latent,)
        if self.latent < 1 or torch.Size(self.shape).numel() != self.latent:
            raise UserError(f"The latent has {self.latent} features and the shape {self.shape}; their numbers must agree.")
        if self.features_at:
            submodule(self.module, self.features_at)
        with torch.no_grad():
            both = self.images(z := self.latents(2, 0))
            if not torch.isfinite(both).all():
                raise UserError("The generator gives values that are not numbers; look at its weights.")
            if not torch.allclose(both[:1], self.images(z[:1]), rtol=1e-3, atol=1e-4 * float(both.abs().max())):
                raise UserError(
                    "The generator gives a latent another image alone than beside others, or in another call; it must not."
                )
        self.model = str(of_module(self.module))

    def latents(self, count: int, seed: int) -> Float[Tensor, "row latent"]:
        """Draws from N(0, I)."""
        return torch.randn(count, self.latent, generator=torch.Generator().manual_seed(seed))

    def images(self, z: Float[Tensor, "row latent"]) -> Float[Tensor, "row pixel"]:
        """Images, flat, in the values that the module gives. Differentiable.

        Raises
        ------
        UserError
            For a latent of the wrong size.
        """
        images = first_tensor(self._run(z))
        if images is None or len(images) != len(z):
            raise UserError(f"The generator gives no image per row of z; its output is {_described(images)}.")
        return images.flatten(1)

    def features(self, z: Float[Tensor, "row latent"]) -> Float[Tensor, "row feature"]:
        """The features, flat; what comes after them does not run. Differentiable.

        Raises
        ------
        UserError
            As `images`.
        """
        if not self.features_at:
            return self.images(z)
        return output_of(self.module, self.features_at, lambda: self._run(z)).flatten(1)

    def projection(self) -> Float[Tensor, "reader latent"]:
        """Weight of the first layer that reads z: what SeFa factorises.

        Raises
        ------
        UserError
            If no dense or transposed-convolution layer reads a latent of this width.
        """
        for part in self.module.modules():
            weight = getattr(part, "weight", None)
            if isinstance(part, nn.Linear) and part.in_features == self.latent:
                return part.weight.detach()
            if isinstance(part, nn.ConvTranspose2d) and part.in_channels == self.latent and isinstance(weight, Tensor):
                return weight.detach().flatten(1).T
        raise UserError(f"No dense or transposed-convolution layer of the generator reads {self.latent} features; SeFa needs one.")

    def _run(self, z: Tensor) -> object:
        z = as_tensor(z, "latents")
        if z.dim() != 2 or z.shape[1] != self.latent:
            raise UserError(f"The latents have the shape {tuple(z.shape)}; this generator takes (row, {self.latent}).")
        try:
            return self.module(z.reshape(len(z), *self.shape))
        except (RuntimeError, ValueError, IndexError) as error:
            first = str(error).splitlines()[0].rstrip(".")
            raise UserError(f"The generator does not run on latents of shape {self.shape}: {first}.") from error


def _described(value: Tensor | None) -> str:
    return "no tensor" if value is None else f"of shape {tuple(value.shape)}"
