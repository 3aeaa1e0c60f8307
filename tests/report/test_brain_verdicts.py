"""Verdicts of the further parts of `brain`: each outcome from a synthetic table, at most 30 words, by rule on intervals."""

import pytest

from repscope.conditions import over
from repscope.report.verdict import MOST_WORDS
from repscope.results import Row, table_of
from repscope.studies.brain import parts
from repscope.studies.catalogue import study

PRE_ALONE = "effects of presynaptic cells alone, no offset"


def row(value, half=0.05, **where):
    return Row(value=value, lo=value - half, hi=value + half, level=0.95, n=50, **where)


def verdict(rows):
    found = study("brain").verdict(table_of(rows))
    for one in (found, *found.parts.values()):
        assert len(one.sentence.split()) <= MOST_WORDS, one.sentence
    return found


def twin(score=0.95, near=0.97, gain=0.2, half=0.04):
    at = {"step": parts.FITTED, "item": parts.SIMULATED_NEURONS}
    return [
        row(score, half, metric="CCnorm", **at),
        row(score - gain, half, metric="CCnorm", condition="LN model", **at),
        row(near, half, metric="centres within one pixel", **at),
        row(gain, half, metric="gain", definition="CCnorm", condition=over("LN model"), **at),
    ]


def wiring(planted=0.98, none=0.05, wald=0.3, half=0.04):
    at = {"step": parts.LIKE_TO_LIKE, "metric": "like-to-like found"}
    return [
        row(planted, half, item="like-to-like", **at),
        row(none, half, item="no like-to-like", **at),
        row(wald, half, item="no like-to-like", condition="pairs taken as independent", **at),
    ]


def slope(own=2.0, half=0.5, p=0.001, rewired=0.0, offset=None):
    at = {"step": parts.SIMILARITY_OF, "metric": "like-to-like slope", "item": "your connectome"}
    rows = [row(own, half, **at), row(rewired, 0.3, condition="rewired, degrees kept", **at)]
    if offset is not None:
        rows += [row(offset, half, condition=c, **at) for c in ("no exposure offset", PRE_ALONE)]
    at["metric"] = "node permutation p"
    return [*rows, Row(value=p, definition="like-to-like slope", **at)]


def signals(own=0.1, half=0.02, p=0.001, matched=0.08, rewired=0.0):
    at = {"step": parts.SIGNALS_OF, "metric": "difference with a synapse", "item": "your connectome"}
    rows = [row(own, half, **at)] + ([] if matched is None else [row(matched, half, condition="matched pairs", **at)])
    rows.append(row(rewired, half, condition="rewired, degrees kept", **at))
    at["metric"] = "node permutation p"
    return [*rows, Row(value=p, definition="difference with a synapse", **at)]


def sharing(shared=0.98, separate=0.03, stimulus=0.02, half=0.03):
    at = {"step": parts.DECODED, "metric": "sharing found"}
    return [
        row(shared, half, item="shared", split="all trials", **at),
        row(separate, half, item="separate", split="all trials", **at),
        row(stimulus, half, item="stimulus", split="and on matched stimuli", **at),
    ]


def trials(one=0.8, back=0.8, within=0.9, p=(0.005, 0.005), controls=None, half=0.08):
    at = {"step": parts.TRIALS, "metric": "AUC across agents", "item": "trials"}
    rows = [row(one, half, split="self to other", **at), row(back, half, split="other to self", **at)]
    rows += [row(within, half, split=agent, condition="within agent", **at) for agent in ("self", "other")]
    for name, value in ({"matched stimuli": 0.8, "disjoint stimuli": 0.8} if controls is None else controls).items():
        rows += [row(value, half, split=way, condition=name, **at) for way in ("self to other", "other to self")]
    at["metric"] = parts.P_DECODED
    return rows + [Row(value=v, split=way, **at) for v, way in zip(p, ("self to other", "other to self"))]


@pytest.mark.parametrize(
    ("name", "rows", "reply", "words"),
    [
        ("Digital twin", twin(), "Yes", "CCnorm is 0.95"),
        ("Digital twin", twin(near=0.82, half=0.1), "Partly", "82 % of receptive fields"),
        ("Digital twin", twin(score=0.4), "No", "does not recover"),
        ("Digital twin", twin(gain=-0.1), "No", "does not recover"),
        ("Digital twin", twin(gain=0.0), "Cannot tell", "is open"),
        ("Wiring, simulated", wiring(), "Yes", "in 5 % without (Wald: 30 %)"),
        ("Wiring, simulated", wiring(none=0.4), "No", "too often"),
        ("Wiring, simulated", wiring(planted=0.2), "No", "20 % of connectomes only"),
        ("Wiring, simulated", wiring(planted=0.7), "Cannot tell", "more connectomes"),
        ("Like-to-like", slope(offset=2.0), "Yes", "beyond the number of partners"),
        ("Like-to-like", slope(), "Partly", "closeness may explain it"),
        ("Like-to-like", slope(own=-1.0), "No", "fewer synapses"),
        ("Like-to-like", slope(own=0.0, half=0.3), "No", "ends below a slope of 0.5"),
        ("Like-to-like", slope(own=0.4, half=0.6, p=0.2, offset=1.5), "Partly", "exposure is left out"),
        ("Like-to-like", slope(own=0.4, half=0.6, p=0.2), "Cannot tell", "leaves open"),
        ("Like-to-like", slope(own=1.0, p=0.2), "Cannot tell", "leaves open"),
        ("Like-to-like", slope(own=1.0, rewired=1.1), "Cannot tell", "leaves open"),
        ("Synapses and signals", signals(), "Yes", "matched pairs and rewired"),
        ("Synapses and signals", signals(matched=0.0), "Partly", "may explain it"),
        ("Synapses and signals", signals(rewired=0.1), "Partly", "may explain it"),
        ("Synapses and signals", signals(matched=None), "Partly", "closeness may explain it"),
        ("Synapses and signals", signals(own=-0.1), "No", "fewer signals"),
        ("Synapses and signals", signals(p=0.3), "Cannot tell", "leaves open"),
        ("Self and other, simulated", sharing(), "Yes", "in 3 % without one"),
        ("Self and other, simulated", sharing(separate=0.4), "No", "too often"),
        ("Self and other, simulated", sharing(stimulus=0.4), "No", "too often"),
        ("Self and other, simulated", sharing(shared=0.3), "No", "30 % of networks only"),
        ("Self and other, simulated", sharing(shared=0.7, half=0.2), "Cannot tell", "more draws"),
        ("Self and other", trials(), "Yes", "and with disjoint stimuli"),
        ("Self and other", trials(controls={}), "Partly", "no control with matched stimuli"),
        ("Self and other", trials(controls={"matched stimuli": 0.5}), "Partly", "but not with matched stimuli"),
        ("Self and other", trials(back=0.5, p=(0.005, 0.5)), "Partly", "one direction only"),
        ("Self and other", trials(one=0.5, back=0.5, p=(0.5, 0.5)), "No", "hardly across"),
        ("Self and other", trials(one=0.55, back=0.55, p=(0.2, 0.2)), "Cannot tell", "do not show"),
        ("Self and other", trials(within=0.5), "Cannot tell", "within one agent"),
    ],
)
def test_each_part_has_its_outcomes(name, rows, reply, words):
    found = verdict(rows)
    part = found.parts[name]
    assert (part.reply, words in part.why) == (reply, True), part.sentence
    assert found.sentence == part.sentence, "without the part on representations, the first part speaks"


def test_the_headline_is_about_representations_and_the_users_data_come_before_simulated_ones():
    at = {"metric": "family found", "split": "late region"}
    of = [
        row(0.95, 0.04, item="RSA, all families", **at),
        row(0.0, item="RSA, all families", condition="recording of random signals", **at),
    ]
    of += [row(0.95, 0.04, item=f"RSA, {family}", **at) for family in ("supervised", "autoencoder", "contrastive")]
    found = verdict([*twin(), *of, *wiring()])
    assert "RSA finds the family" in found.why
    assert list(found.parts) == ["RSA", "Digital twin", "Wiring, simulated"]
    assert "matched pairs" in verdict([*wiring(), *signals()]).why
