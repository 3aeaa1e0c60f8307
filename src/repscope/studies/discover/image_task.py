"""What the steps of `discover` on image generators share: the methods and the setting of a run."""

from dataclasses import dataclass

from repscope.discovery.generators.comparison import need_methods
from repscope.discovery.generators.digit_material import DigitSetting
from repscope.discovery.generators.judges import KNOWN, Known
from repscope.discovery.generators.material import Setting
from repscope.discovery.generators.sprite_material import SpriteSetting
from repscope.studies.discover import image_names as names
from repscope.studies.discover.options import DiscoverOptions


@dataclass(frozen=True)
class ImageTask:
    """The options of a run and what its steps make of them."""

    options: DiscoverOptions

    @property
    def gan(self) -> bool:
        """Whether the generator is the GAN."""
        return self.options.subject == names.GAN

    @property
    def methods(self) -> list[str]:
        """The methods, each once.

        Raises
        ------
        UserError
            For an unknown method, or one of the other kind of generator.
        """
        found = list(dict.fromkeys(self.options.methods))
        need_methods(found, gan=self.gan, labels=self.gan or self.options.site == "conditioning", exclusive=self.known.exclusive)
        return found

    @property
    def known(self) -> Known:
        """What is known of the images."""
        return KNOWN[self.options.data]

    @property
    def setting(self) -> Setting:
        """The generator and how it is searched."""
        o = self.options
        assert o.subject != "language"
        if o.data == names.DIGITS:
            return DigitSetting(o.samples, o.images, o.scale, o.seed, o.tiny)
        return SpriteSetting(o.subject, o.site, o.samples, o.images, o.scale, o.seed, o.tiny)
