"""Check for export formats that allow at most one direction per block, at block outputs."""

from collections.abc import Sequence

from repscope.directions.direction import Direction
from repscope.errors import UserError
from repscope.models.sites import Site


def by_block(directions: Sequence[Direction], what: str, kind: str = "resid_post") -> dict[int, Direction]:
    """Direction per block, in the order of blocks.

    Parameters
    ----------
    directions
        All at one kind of site.
    what
        Name of the export format, for messages.
    kind
        The kind of site.

    Raises
    ------
    UserError
        If there is none, one is at another site, or two are at one block.
    """
    found: dict[int, Direction] = {}
    for direction in directions:
        site = Site.parse(direction.site)
        if site.kind == "resid_pre" and kind == "resid_post" and site.layer is not None and site.layer > 0:
            raise UserError(
                f"The direction {direction.name!r} lives at {site}; {what} names block outputs, and that is "
                f"resid_post.{site.layer - 1}: make the direction there."
            )
        if site.kind != kind or site.layer is None or site.layer < 0 or site.head is not None:
            raise UserError(
                f"The direction {direction.name!r} lives at {site}, and {what} holds those at {kind}.BLOCK alone; save() keeps any."
            )
        if site.layer in found:
            raise UserError(
                f"{found[site.layer].name!r} and {direction.name!r} both live at {site}, and {what} holds one a block; choose one."
            )
        found[site.layer] = direction
    if not found:
        raise UserError(f"There is no direction to write as {what}; the set is empty.")
    if len(widths := sorted({d.width for d in found.values()})) > 1:
        raise UserError(f"These directions have {widths[0]} and {widths[-1]} features; {what} has one width.")
    return dict(sorted(found.items()))
