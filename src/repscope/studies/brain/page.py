"""The page of the `brain` study and its closing lines, from the table of the run."""

from repscope.conditions import ESTIMATE, RANDOM_RECORDING, UNTRAINED_RECORDING
from repscope.report.page import Item, Page, Section
from repscope.report.text import format_estimate
from repscope.results import records
from repscope.studies.brain import figures, names, parts, sharing_page, twin_page, wiring_page
from repscope.studies.brain.options import BrainOptions
from repscope.studies.brain.parts_verdict import verdicts
from repscope.studies.run.study import Answer, Record

_QUESTIONS = {  #: of the parts, on a page without the first one
    "twin": "Does a digital twin predict neurons as well as their noise allows?",
    "wiring": "Do connected cells respond alike, and do synapses predict signals?",
    "self-other": "Is what happens to another coded as what happens to oneself?",
}


def page(record: Record[BrainOptions]) -> Page:
    """The page."""
    table, o = record.table, record.options
    ran = [m for m in names.METHODS if len(table[table["step"] == m])]
    given = names.GIVEN in set(table["step"])
    sections = [_regions(record, ran), _networks(record)] if ran else []
    headline = figures.given(table, ran[0]) if given else figures.matrix(table, ran[0], names.LATE) if ran else None
    return Page(
        title="Networks and brains",
        question="" if parts.REPRESENTATION in o.parts else " ".join(_QUESTIONS[part] for part in o.parts),
        context=(f"{o.networks} networks per family, {o.conditions} stimuli",) if ran else (),
        tested="Tested on simulated recordings and connectomes with a known truth. "
        + (
            "Your data have no known truth: the simulation says what the methods can find."
            if _of_user(record)
            else "Not tested: a brain."
        ),
        headline=headline,
        key=figures.key(table) if ran else None,
        sections=(*sections, *other_parts(record)),
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
            for row in records(table, condition=condition, **at):
                lines.append(f"{method}, {names.LATE}: {said} {format_estimate(row)}.")
    for row in records(table, metric=names.SIMILARITY, step=names.GIVEN):
        lines.append(f"{row['item']}, {row['condition']}: {format_estimate(row)}.")
    if not record.options.tiny:
        lines += [f"{name}: {found.sentence}" for name, found in verdicts(table).items()]
    return Answer(lines)


def other_parts(record: Record[BrainOptions]) -> list[Section]:
    """The sections on digital twins, wiring and function, self and other; each begins with its verdicts."""
    found = {} if record.options.tiny else verdicts(record.table)

    def said(*named: str) -> str:
        given = {parts.VERDICTS[name]: found.get(parts.VERDICTS[name]) for name in named}
        return "\n\n".join(f"{name}: {one.sentence}" if len(named) > 1 else one.sentence for name, one in given.items() if one)

    made: list[Section] = []
    if parts.FITTED in record.results:
        made.append(twin_page.section(record, said(parts.TWIN)))
    if parts.LIKE_TO_LIKE in record.results:
        made += wiring_page.sections(record, said(parts.WIRING), said(parts.SIMILARITY_OF, parts.SIGNALS_OF))
    if parts.DECODED in record.results:
        made.append(sharing_page.section(record, said(parts.SELF_OTHER, parts.TRIALS)))
    return made


def _of_user(record: Record[BrainOptions]) -> bool:
    """Whether the run has data of the user."""
    of_user = {names.GIVEN, parts.RECORDED, parts.SIMILARITY_OF, parts.SIGNALS_OF, parts.TRIALS}
    return bool(of_user & set(record.results))


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
