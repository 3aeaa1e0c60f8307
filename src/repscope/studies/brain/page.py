"""The page of the `brain` study and its closing lines, from the table of the run."""

from repscope.conditions import ESTIMATE, RANDOM_RECORDING, UNTRAINED_RECORDING
from repscope.report.page import Item, Page, Section
from repscope.report.text import format_estimate
from repscope.results import select
from repscope.studies.brain import figures, names
from repscope.studies.brain.options import BrainOptions
from repscope.studies.run.study import Answer, Record


def page(record: Record[BrainOptions]) -> Page:
    """The page."""
    table, o = record.table, record.options
    ran = [m for m in names.METHODS if len(table[table["step"] == m])]
    given = names.GIVEN in set(table["step"])
    sections = [_regions(record, ran), _networks(record)]
    return Page(
        title="Networks and brains",
        context=(f"{o.networks} networks per family, {o.conditions} stimuli",),
        tested="Tested on simulated recordings of small networks that see digits, with a known truth. "
        + ("Your recording has no known truth: the simulation says what the method can find." if given else "Not tested: a brain."),
        headline=figures.given(table, ran[0]) if given else figures.matrix(table, ran[0], names.LATE),
        key=figures.key(table),
        sections=tuple(sections),
        notes=(*record.notes, *(("The short form has few recordings and networks.",) if o.short else ())),
    )


def answer(record: Record[BrainOptions]) -> Answer:
    """The main numbers, one line each."""
    table, lines = record.table, list(record.warnings)
    for method in names.METHODS:
        at = {"metric": names.FOUND, "item": names.item(method, names.ALL), "split": names.LATE}
        for condition, said in (
            (ESTIMATE, "names the generating family in"),
            (RANDOM_RECORDING, "names a family in recordings of random signals in"),
            (UNTRAINED_RECORDING, "names a trained family in recordings of untrained networks in"),
        ):
            for row in select(table, condition=condition, **at).to_dict("records"):
                lines.append(f"{method}, {names.LATE}: {said} {format_estimate(row)}.")
    for row in select(table, metric=names.SIMILARITY, step=names.GIVEN).to_dict("records"):
        lines.append(f"{row['item']}, {row['condition']}: {format_estimate(row)}.")
    return Answer(lines)


def _regions(record: Record[BrainOptions], ran: list[str]) -> Section:
    table = record.table
    items: list[Item] = []
    for i, method in enumerate(ran):
        for region in names.REGIONS[::-1]:
            if i or region != names.LATE or names.GIVEN in set(table["step"]):
                items.append(figures.matrix(table, method, region, small=True))
    items += [figures.found(table, region) for region in names.REGIONS[::-1]]
    items += [figures.mapping(table)]
    if names.RSA in ran:
        items.append(figures.ceilings(table))
    text = (
        "Look at the diagonals: a method that works has its largest number there, and finds no family in random signals. Encoding "
        "models weigh the units of a layer freely, so families differ less by them than by RSA, which takes a layer as it is."
    )
    return Section("Would the comparison find the right family?", text, tuple(items))


def _networks(record: Record[BrainOptions]) -> Section:
    text = (
        "Look at whether training changed the networks: digits can be read out of the last layer of trained networks better than "
        "of the same networks before."
    )
    return Section("The families", text, (figures.digits(record.table),))
