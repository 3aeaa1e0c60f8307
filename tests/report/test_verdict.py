"""Verdicts: rules on tables, each outcome from a synthetic table; at most 30 words; none of a tiny run."""

import json
from pathlib import Path

import pytest

from repscope.cli import run as command
from repscope.conditions import ESTIMATE, NO_BIAS, RANDOM, SHUFFLED_GROUPS, over
from repscope.report.verdict import MOST_WORDS, Verdict, joined, side
from repscope.results import CHOSEN, Row, table_of
from repscope.studies.catalogue import QUESTIONS, study
from repscope.trace.barriers import GAP


def row(value, half=0.05, **where):
    return Row(value=value, lo=value - half, hi=value + half, level=0.95, n=50, **where)


def within_limit(verdict):
    """Every sentence is at most 30 words, and the verdict of parts too."""
    for one in (verdict, *verdict.parts.values()):
        assert len(one.sentence.split()) <= MOST_WORDS, one.sentence
    return verdict


def entities(shuffled, tokens, random=0.3, late=False, item="cities.continent"):
    rows = [
        row(gain, item=item, metric="gain", condition=over(name), split="entity", site=CHOSEN)
        for name, gain in {"shuffled labels": shuffled, "bag of token embeddings": tokens, "random weights": random}.items()
    ]
    for block in range(-1, 10):
        reached = block >= (8 if late else 2)
        site = "embed" if block < 0 else f"resid_post.{block}"
        at = {"site": site, "layer": None if block < 0 else block, "token": "last", "split": "entity"}
        rows.append(row(0.8 if reached else 0.4, item=item, metric="accuracy", **at))
    return rows


@pytest.mark.parametrize(
    ("rows", "reply", "words"),
    [
        (entities(0.4, 0.2), "Yes", "from block 2 of 10 on"),
        (entities(0.4, 0.2, late=True), "Partly", "only from block 8 of 10"),
        (entities(0.4, 0.2, random=0.0), "Partly", "no better than from random weights"),
        (entities(0.4, 0.0), "Cannot tell", "is open"),
        (entities(0.4, -0.2), "No", "no better than from the tokens"),
        (entities(0.0, 0.0), "Cannot tell", "may be zero"),
        (entities(-0.2, 0.0), "No", "shuffled labels"),
        (entities(0.4, 0.2) + entities(0.4, -0.2, item="my.towns.kind"), "Partly", "1 of 2 attributes"),
        (entities(0.4, 0.2) + entities(0.4, 0.2, item="my.towns.kind"), "Yes", "Every attribute"),
        (entities(0.4, -0.2) + entities(0.4, -0.2, item="my.towns.kind"), "No", "No attribute"),
        (entities(0.4, 0.0) + entities(0.4, 0.0, item="my.towns.kind"), "Cannot tell", "For no attribute"),
    ],
)
def test_entities(rows, reply, words):
    verdict = within_limit(study("entities").verdict(table_of(rows)))
    assert (verdict.reply, words in verdict.why) == (reply, True), verdict.sentence
    if len(verdict.parts):
        assert list(verdict.parts) == ["Continent of cities", "Kind of my.towns"]


def built(lost, noise, attention, half=0.03, item="cities.continent"):
    """An ablation of all early blocks, and what it costs more than noise and than attention."""
    at = {"item": item, "site": "blocks 0–8", "split": "entity"}
    said = "MLP outputs replaced; read after block 8"
    return [
        row(
            0.01,
            half,
            metric="accuracy lost",
            condition="MLP outputs replaced",
            definition="mean over names",
            **(at | {"site": "blocks 0–2"}),
        ),
        row(
            lost,
            half,
            metric="accuracy lost",
            condition="MLP outputs replaced",
            definition="mean over names read after block 8",
            **at,
        ),
        row(noise, half, metric="extra loss", condition="over random change of MLP outputs", definition=said, **at),
        row(attention, half, metric="extra loss", condition="over attention outputs replaced", definition=said, **at),
    ]


@pytest.mark.parametrize(
    ("rows", "reply", "words"),
    [
        (built(0.4, 0.3, 0.2), "Yes", "more than attention's"),
        (built(0.4, 0.3, -0.2), "Partly", "attention are needed more"),
        (built(0.4, 0.3, 0.0), "Partly", "is open"),
        (built(0.01, 0.0, 0.0), "No", "nearly as much"),
        (built(0.4, -0.2, 0.2), "Cannot tell", "cost as much"),
        (built(0.4, 0.0, 0.2), "Cannot tell", "cost as much"),
        (built(0.06, 0.2, 0.2), "Cannot tell", "is open"),
    ],
)
def test_how_names_are_built(rows, reply, words):
    """A verdict of its own, which leaves that of the attributes alone."""
    verdict = within_limit(study("entities").verdict(table_of(entities(0.4, 0.2) + rows)))
    assert verdict.reply == "Yes"
    found = verdict.parts["How the vector of cities is built"]
    assert (found.reply, words in found.why) == (reply, True), found.sentence


def relations(faithful, other, majority=0.4, item="country-capital", **more):
    at = {"item": item, "site": CHOSEN, "split": "halves"}
    gains = {"map on another subject's vector": other, "majority object": majority, "ridge map, whole half": 0.3, "beta 1": -0.3}
    gains |= more
    return [row(faithful, metric="faithfulness", **at)] + [
        row(gain, metric="gain", definition="faithfulness", condition=over(name), **at) for name, gain in gains.items()
    ]


@pytest.mark.parametrize(
    ("rows", "reply"),
    [
        (relations(0.8, 0.4), "Yes"),
        (relations(0.3, 0.2), "Partly"),
        (relations(0.5, 0.2), "Partly"),
        (relations(0.8, 0.02), "Cannot tell"),
        (relations(0.8, 0.4, majority=-0.2), "No"),
        (relations(0.8, 0.4) + relations(0.8, 0.4, item="b"), "Yes"),
        (relations(0.8, 0.4) + relations(0.8, -0.4, item="b"), "Partly"),
        (relations(0.8, -0.4) + relations(0.8, -0.4, item="b"), "No"),
        (relations(0.8, 0.0) + relations(0.8, -0.4, item="b"), "Cannot tell"),
        ([], "Cannot tell"),
    ],
)
def test_relations(rows, reply):
    assert within_limit(study("relations").verdict(table_of(rows))).reply == reply


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            relations(0.8, 0.4, **{"map from the embedding": -0.07}),
            "most known subjects, but less often than a map from the embedding",
        ),
        (relations(0.8, 0.4, **{"map from the embedding": 0.0}), "but no more often than a map from the embedding."),
        (relations(0.8, 0.4, **{"map from the embedding": 0.03}), "but perhaps no more often than a map from the embedding."),
        (relations(0.8, 0.4, **{"logit lens": 0.01, "translation": -0.01}), "no more often than a translation and 1 other."),
        (
            relations(0.3, 0.4, **{"ridge map, the same examples": 0.0}),
            "fewer than half of the subjects, and no more often than ridge",
        ),
        (
            relations(0.5, 0.4, **dict.fromkeys(("ridge map, the same examples", "translation", "logit lens"), 0.01)),
            "and 2 others.",
        ),
    ],
)
def test_a_relation_whose_baseline_does_as_well(rows, words):
    """The sentence names the baseline over which the map's gain is not shown."""
    verdict = within_limit(study("relations").verdict(table_of(rows)))
    assert (verdict.reply, words in verdict.why) == ("Partly", True), verdict.sentence


def remedied(efficacy, random=0.3, raw=0.3, spread=0.8, same=0.8, other=0.8, half=0.05):
    """REMEDI on all relations: efficacy, gains over controls, paraphrases, and what stays."""
    at = {"item": "all relations"}
    rows = [row(efficacy, half, metric="REMEDI efficacy", **at), row(0.1, half, metric="REMEDI efficacy", item="country-capital")]
    gain = {"metric": "REMEDI gain", "definition": "REMEDI efficacy"} | at
    rows += [row(random, half, condition=over(RANDOM), **gain), row(raw, half, condition="over raw attribute vector", **gain)]
    rows.append(row(spread, half, metric="REMEDI generalisation", **at))
    kinds = {"same subject": same, "other subject": other}
    return rows + [row(v, half, metric="REMEDI specificity", definition=k, **at) for k, v in kinds.items() if v is not None]


@pytest.mark.parametrize(
    ("rows", "reply", "words"),
    [
        (remedied(0.9), "Yes", "beats its controls"),
        (remedied(0.9, same=None), "Yes", "beats its controls"),
        (remedied(0.9, spread=0.5), "Partly", "paraphrases"),
        (remedied(0.9, other=0.3), "Partly", "other facts may change"),
        (remedied(0.9, other=0.3, spread=0.2), "Partly", "paraphrases and other facts"),
        (remedied(0.5), "Partly", "may edit fewer"),
        (remedied(0.3), "Partly", "edits fewer than half"),
        (remedied(0.9, raw=-0.2), "No", "fewer facts than"),
        (remedied(0.1, random=0.0), "No", "no gain"),
        (remedied(0.9, raw=0.0), "Cannot tell", "may be zero"),
    ],
)
def test_remedi(rows, reply, words):
    """A verdict of its own, which leaves that of the maps alone."""
    verdict = within_limit(study("relations").verdict(table_of(relations(0.8, 0.5) + rows)))
    assert verdict.reply == "Yes"
    found = verdict.parts["Editing facts by REMEDI"]
    assert (found.reply, words in found.why) == (reply, True), found.sentence


def discover(kl, overlap=0.0, half=0.05, **more):
    values = {"random directions": 0.2, "L2": kl} | more
    rows = [
        row(v, at, metric="kl", item=name, condition=RANDOM if name.startswith("random") else ESTIMATE, step=step)
        for step, at in (("seed 0", float("nan")), ("summary", half))  # a run's table has the seeds first, without intervals
        for name, v in values.items()
    ]
    return [*rows, row(overlap, metric="gain", definition="overlap", item="L2 + contrastive: overlap", condition=over("L2"))]


@pytest.mark.parametrize(
    ("rows", "reply", "words"),
    [
        (discover(0.9), "Yes", "every method"),
        (discover(0.9, overlap=-0.3), "Yes", "overlap less"),
        (discover(0.9, overlap=0.3), "Yes", "overlap more"),
        (discover(0.22), "Cannot tell", "For no method"),
        (discover(0.01), "No", "No method"),
        (discover(0.9, Jacobian=0.2), "Partly", "1 of 2 methods"),
        (discover(0.9, half=float("nan")), "Cannot tell", "For no method"),
        ([row(0.9, metric="kl", item="L2")], "Cannot tell", "No method was compared"),
    ],
)
def test_discover(rows, reply, words):
    verdict = within_limit(study("discover").verdict(table_of(rows)))
    assert (verdict.reply, words in verdict.why) == (reply, True), verdict.sentence


def discover_images(alone=None, published=None, overlap=0.0, explained=0.9, half=0.01, data="sprites", found=0.3):
    """Gains in selectivity of contrastive objectives over random directions, and in overlap beside a magnitude over L2."""
    rows = [row(explained, metric=f"{data} explained", item="generator"), row(0.4, metric="selectivity", item="L2")]
    for name, gain in (("contrastive", alone), ("LatentCLR", published)):
        if gain is not None:
            at = {"definition": "selectivity", "item": f"{name}: selectivity", "condition": over(RANDOM)}
            rows.append(row(gain, half, metric="gain", **at))
    if found is not None:
        at = {"definition": "factor change", "item": "L2: factor change", "condition": over(RANDOM)}
        rows.append(row(found, 0.01, metric="gain", **at))
    at = {"definition": "overlap", "item": "L2 + contrastive: overlap", "condition": over("L2")}
    return [*rows, row(overlap, half, metric="gain", **at)]


@pytest.mark.parametrize(
    ("rows", "reply", "words"),
    [
        (discover_images(0.0, 0.0, overlap=-0.3), "Yes", "As on language models, a contrastive objective alone finds no more"),
        (discover_images(-0.2, 0.0, overlap=-0.3), "Yes", "separates"),
        (discover_images(0.2, 0.0, overlap=-0.3), "Partly", "alone finds more"),
        (discover_images(0.0, 0.2, overlap=-0.3), "Partly", "alone finds more"),
        (discover_images(0.0, 0.0, overlap=0.3), "Partly", "does not separate"),
        (discover_images(0.2, 0.2, overlap=0.3), "No", "Unlike on language models"),
        (discover_images(0.03, 0.03, overlap=-0.3), "Partly", "is open"),
        (discover_images(0.03, 0.03), "Cannot tell", "open"),
        (discover_images(0.2, 0.2), "Cannot tell", "leave open"),
        (discover_images(0.2, 0.2, overlap=-0.3, explained=0.5), "Cannot tell", "train it longer"),
        (discover_images(overlap=-0.3), "Partly", "is open"),
        (discover_images(0.0, 0.0, overlap=-0.3, explained=0.6, data="digits"), "Yes", "As on language models"),
        (discover_images(0.2, 0.2, overlap=0.3, explained=0.6, data="digits"), "No", "Unlike on language models"),
        (discover_images(0.2, 0.0, overlap=-0.3, explained=0.6, data="digits"), "Partly", "alone finds more"),
        (discover_images(0.2, 0.2, overlap=-0.3, explained=0.3, data="digits"), "Cannot tell", "close enough to digits"),
        (discover_images(0.2, half=float("nan")), "Cannot tell", "open"),
        (discover_images(0.0, 0.0, found=0.0), "Cannot tell", "open"),
        (
            discover_images(0.0, 0.0, overlap=-0.3, found=0.0),
            "Partly",
            "whether a contrastive objective alone finds anything is open",
        ),
        (discover_images(0.0, 0.0, overlap=-0.3, found=None), "Partly", "is open"),
        (discover_images(0.2, 0.0, overlap=-0.3, found=0.0), "Partly", "alone finds more"),
    ],
)
def test_discover_on_images(rows, reply, words):
    verdict = within_limit(study("discover").verdict(table_of(rows)))
    assert (verdict.reply, words in verdict.why) == (reply, True), verdict.sentence


def contrast(gain, prompting=None):
    at = {"site": CHOSEN, "split": "halves", "metric": "gain"}
    more = [row(prompting, condition=over("prompting"), **at)] if prompting is not None else []
    return [row(gain, condition=over(RANDOM), **at), *more]


@pytest.mark.parametrize(
    ("rows", "reply", "words"),
    [
        (contrast(0.4), "Yes", "equal norm, while"),
        (contrast(0.4, 0.3), "Yes", "more than prompting"),
        (contrast(0.4, -0.3), "Yes", "less than prompting"),
        (contrast(0.0), "Cannot tell", "may be zero"),
        (contrast(-0.4), "No", "random directions of equal norm steer more"),
        ([], "No", "At no strength"),
    ],
)
def test_contrast(rows, reply, words):
    verdict = within_limit(study("contrast").verdict(table_of(rows)))
    assert (verdict.reply, words in verdict.why) == (reply, True), verdict.sentence


def features(layer, random, dense):
    at = {"metric": "gain", "item": "countries.continent: 16 features"}
    return [
        row(layer, metric="gain", item="CE recovered", condition=over("principal components")),
        row(random, condition=over("random dictionary"), **at),
        row(dense, condition=over("dense probe"), **at),
        row(9.0, metric="gain", item="countries.continent: 4 features", condition=over("dense probe")),  # not what it is about
    ]


@pytest.mark.parametrize(
    ("rows", "reply", "words"),
    [
        (features(0.3, 0.3, 0.02), "Yes", "1 of 1 attributes"),
        (features(-0.3, -0.2, -0.3), "No", "keep less"),
        (features(0.0, 0.0, 0.0), "Cannot tell", "is open"),
        (features(0.3, 0.3, -0.3), "Partly", "0 of 1 attributes"),
        (features(0.3, 0.3, -0.05), "Partly", "0 of 1 attributes"),
        (features(0.0, 0.3, 0.02), "Partly", "principal components is open"),
        ([row(0.3, metric="gain", item="CE recovered", condition=over("principal components"))], "Yes", "keep more"),
    ],
)
def test_features(rows, reply, words):
    verdict = within_limit(study("features").verdict(table_of(rows)))
    assert (verdict.reply, words in verdict.why) == (reply, True), verdict.sentence


def paths(ratio, seeds=None, rule=0.9, overlap=0.1, shuffled=1.0):
    at = {"step": "summary"}
    rows = [
        row(rule, metric="share of the rule", item="rule", **at),
        row(overlap, metric="share of the rule", item="lexical overlap", **at),
        row(ratio, metric="ratio", item=GAP, **at),
        row(shuffled, metric="ratio", item=GAP, condition=SHUFFLED_GROUPS, **at),
    ]
    return rows + ([row(seeds, metric="mantel rho", item=GAP, condition=NO_BIAS, **at)] if seeds is not None else [])


def published(auc, **left):
    names = {"one": "in-domain accuracy regressed out", "within": "in-domain accuracy regressed out, slope within clusters"}
    rows = [row(auc, metric="auc", item="score", step="published")]
    return rows + [row(v, metric="auc", item="score", step="published", condition=names[k]) for k, v in left.items()]


@pytest.mark.parametrize(
    ("rows", "reply", "words"),
    [
        (paths(1.8, seeds=0.0), "Partly", "differ only in their seed do not"),
        (paths(1.8, seeds=0.2), "Partly", "show no evidence"),
        (paths(1.8), "Partly", "show no evidence"),
        (paths(1.8, seeds=0.6), "No", "even when they differ only in seed"),
        (paths(1.0), "Yes", "one basin"),
        (paths(1.2), "Cannot tell", "intervals over pretrainings")
        if False
        else (paths(1.18, shuffled=1.2), "Cannot tell", "intervals"),
        (paths(1.8, rule=0.5), "Cannot tell", "early bias did not last"),
        (published(0.8, one=0.7, within=0.7), "No", "beyond what"),
        (published(0.8, one=0.5, within=0.7), "Partly", "may explain"),
        (published(0.52), "Cannot tell", "chance"),
        ([], "Cannot tell", "No score"),
    ],
)
def test_paths(rows, reply, words):
    verdict = within_limit(study("paths").verdict(table_of(rows)))
    assert (verdict.reply, words in verdict.why) == (reply, True), verdict.sentence


def connect(barrier, control=None, item="a – b", half=0.005):
    rows = [
        row(1.0, metric="loss", definition="of the run itself", item=item[0]),
        row(barrier, half, metric="chord barrier of loss", item=item),
    ]
    return rows + ([row(control, half, metric="loss increase of loss", item=item, condition=RANDOM)] if control is not None else [])


@pytest.mark.parametrize(
    ("rows", "reply", "words"),
    [
        (connect(0.5), "Yes", "different basins"),
        (connect(0.0, 0.5), "No", "stays flat between"),
        (connect(0.0, 0.0), "Cannot tell", "too close"),
        (connect(0.0), "Cannot tell", "without a control"),
        (connect(0.01), "Cannot tell", "may be zero"),
        (connect(0.5, half=float("nan")), "Cannot tell", "interval is missing"),
        (connect(0.5) + connect(0.0, 0.5, item="a – c"), "Partly", "1 of 2 lines"),
        (connect(0.5) + connect(0.5, item="a – c"), "Yes", "every line"),
        (connect(0.0, 0.5) + connect(0.0, 0.5, item="a – c"), "No", "no line"),
    ],
)
def test_connect(rows, reply, words):
    verdict = within_limit(study("connect").verdict(table_of(rows)))
    assert (verdict.reply, words in verdict.why) == (reply, True), verdict.sentence


def bayes(token=0.05, last=0.07, change=-0.05, rise=0.2, ceiling=0.25, half=0.02, untrained=1.5):
    of = "uniform delimiter, L = 3"
    return [
        row(token, half, metric="KL to Bayes per token", item="transformers", split="documents"),
        row(untrained, half, metric="KL to Bayes per token", item="transformers", split="documents", condition="untrained network"),
        row(last, half, metric="KL to Bayes", item=f"{of}, k = 16"),
        row(0.05, half, metric="KL to Bayes", item=f"{of}, k = 0"),
        row(change, half, metric="change of KL to Bayes", item=of, split="k = 1 to 16"),
        row(rise, half, metric="rise", item=of, split="k = 0 to 16"),
        row(ceiling, half, metric="rise", item=of, split="k = 0 to 16", condition="pretraining Bayes"),
    ]


@pytest.mark.parametrize(
    ("rows", "reply", "words"),
    [
        (bayes(), "Yes", "shrinking with their number"),
        (bayes(last=0.2), "Partly", "shrinking from the first on"),
        (bayes(change=0.01), "Partly", "with no clear trend"),
        (bayes(change=0.05), "Partly", "growing"),
        (bayes(token=0.3), "No", "too far"),
        (bayes(token=1.4), "Cannot tell", "hardly learned"),
        (bayes(rise=0.0), "No", "do not help them"),
        (bayes(ceiling=0.01), "Cannot tell", "does not learn"),
        (bayes(token=0.1), "Cannot tell", "do not show"),
        (bayes(rise=0.06, half=0.07), "Cannot tell", ""),
        ([], "Cannot tell", "No network"),
    ],
)
def test_bayes(rows, reply, words):
    verdict = within_limit(study("bayes").verdict(table_of(rows)))
    assert (verdict.reply, words in verdict.why) == (reply, True), verdict.sentence


def brain(found=0.95, each=None, random=0.0, half=0.04, method="RSA", early=None):
    at = {"metric": "family found", "split": "late region"}
    item = f"{method}, all families"
    rows = [row(found, half, item=item, **at), row(random, half, item=item, condition="recording of random signals", **at)]
    if early is not None:
        rows.append(row(early, half, item=item, **at | {"split": "early region"}, condition="recording of random signals"))
    of = {"supervised": found, "autoencoder": found, "contrastive": found} | (each or {})
    return rows + [row(value, half, item=f"{method}, {family}", **at) for family, value in of.items()]


def brain_region(own=0.3, untrained=0.1, pixels=0.1, ceiling=0.3, region="V1"):
    """A region of the user's recording."""
    item = f"RSA, {region}: supervised"
    return [
        row(own, item=item, metric="similarity", step="recording"),
        row(0.01, item=f"RSA, {region}: contrastive", metric="similarity", step="recording"),
        row(own, item=f"RSA, {region}: untrained", metric="similarity", condition="untrained network", step="recording"),
        row(untrained, item=item, metric="gain", condition=over("untrained network"), step="recording"),
        row(pixels, item=item, metric="gain", condition=over("pixels"), step="recording"),
        Row(value=ceiling, item=f"RSA, {region}", metric="similarity", condition="lower noise ceiling", step="recording"),
    ]


@pytest.mark.parametrize(
    ("rows", "reply", "words"),
    [
        (brain(), "Yes", "in 95 % of simulated recordings"),
        (brain(0.3), "No", "in 30 %"),
        (brain(0.7, {"supervised": 1.0, "autoencoder": 0.1, "contrastive": 1.0}), "Partly", "not every family"),
        (brain(0.6, half=0.2), "Cannot tell", "more recordings are needed"),
        (brain(random=0.2), "Cannot tell", "random signals"),
        (brain(early=0.2), "Cannot tell", "random signals"),
        (brain(early=0.025), "Yes", "any family in 2.5 % of random ones"),
        (brain(method="encoding"), "Yes", "Encoding models find"),
        (brain(0.3) + brain(method="encoding"), "No", "RSA finds"),
        ([], "Cannot tell", "No recording"),
        (brain() + brain_region(), "Yes", "reaches the noise ceiling"),
        (brain() + brain_region(ceiling=0.6), "Partly", "below the noise ceiling"),
        (brain() + brain_region(untrained=-0.2), "No", "No trained family"),
        (brain() + brain_region(pixels=0.0), "Cannot tell", "do not show"),
        (brain() + brain_region(own=0.0, untrained=0.0, pixels=0.0), "Cannot tell", "do not show"),
        (brain() + brain_region() + brain_region(untrained=-0.2, region="IT"), "Partly", "not everywhere"),
    ],
)
def test_brain(rows, reply, words):
    verdict = within_limit(study("brain").verdict(table_of(rows)))
    assert (verdict.reply, words in verdict.why) == (reply, True), verdict.sentence


def of_documents(token=0.05, last=0.07, change=-0.05, rise=0.2, ceiling=0.25, half=0.02, untrained=1.5):
    """The rows of networks trained on the user's models."""
    of = {"metric": "KL to Bayes per token", "item": "transformers", "split": "documents"}
    return [
        row(token, half, **of),
        row(untrained, half, condition="untrained network", **of),
        row(last, half, metric="KL to Bayes", item="given models, n = 63"),
        row(change, half, metric="change of KL to Bayes", item="given models", split="n = 1 to 63"),
        row(rise, half, metric="rise", item="given models", split="n = 1 to 63"),
        row(ceiling, half, metric="rise", item="given models", split="n = 1 to 63", condition="pretraining Bayes"),
    ]


def of_a_model(last=0.3, change=-0.2, beyond=-0.1, ceiling=0.25, half=0.02):
    of = "GINC prompts, L = 3"
    return [
        row(1.0, half, metric="KL to Bayes per token", item="model", split="documents"),
        row(last, half, metric="KL to Bayes", item=f"{of}, k = 16"),
        row(beyond, half, metric="KL to Bayes", item=f"{of}, k = 16", condition="over symbol pair counts"),
        row(0.05, half, metric="KL to Bayes", item="GINC prompts, L = 5, k = 32"),
        row(change, half, metric="change of KL to Bayes", item=of, split="k = 1 to 16"),
        row(ceiling, half, metric="rise", item=of, split="k = 0 to 16", condition="pretraining Bayes"),
    ]


@pytest.mark.parametrize(
    ("rows", "reply", "words"),
    [
        (of_documents(), "Yes", "accuracy rises with symbols"),
        (of_documents(change=0.01), "Partly", "with no clear trend"),
        (of_documents(token=0.3), "No", "too far"),
        (of_documents(ceiling=0.0), "Cannot tell", "does not learn from symbols"),
        (of_a_model(last=0.05), "Yes", "After 16 examples the model is 0.05 nats"),
        (of_a_model(), "Partly", "but remains"),
        (of_a_model(beyond=0.1), "No", "farther than counts"),
        (of_a_model(change=0.2), "No", "farther than after the first"),
        (of_a_model(change=0.0), "Cannot tell", "do not show"),
        (of_a_model(beyond=0.0), "Cannot tell", "do not show"),
        (of_a_model(ceiling=0.0), "Cannot tell", "does not learn"),
    ],
)
def test_bayes_of_what_the_user_gives(rows, reply, words):
    verdict = within_limit(study("bayes").verdict(table_of(rows)))
    assert (verdict.reply, words in verdict.why) == (reply, True), verdict.sentence


def floor(norm, cka=None, kl=None, cosine=0.02):
    """Rows between two seeds, at the second block; kl: to the base and between seeds; cosine: of both changes of the weights."""
    rows = [row(norm, 0.001, item="all weights", metric="relative Frobenius norm", condition="another seed")]
    rows.append(row(cosine, 0.001, item="all weights", metric="cosine of the changes"))
    if cka is not None:
        rows.append(row(cka, 0.01, metric="CKA", site="resid_post.1", layer=1, condition="another seed"))
    if kl is not None:
        rows += [row(v, 0.0005, metric="KL", condition=c) for v, c in zip(kl, ("estimate", "another seed"))]
    return rows


def compared(norm, same=0.1, cka=None, unshifted=None, half=0.001, rounding=0.0017, settings=None):
    rows = [row(norm, half, item="all weights", metric="relative Frobenius norm")]
    rows.append(row(same, 0.0, item="all weights", metric="unchanged in float32"))
    rows.append(row(rounding, 0.0, item="all weights", metric="relative Frobenius norm", condition="rounding to bfloat16"))
    rows += [row(1, 0.0, item="all weights", metric="differing settings", definition=settings)] if settings else []
    rows += [row(value, 0.01, metric="CKA", site=f"resid_post.{i}", layer=i) for i, value in enumerate(cka or ())]
    return rows + ([] if unshifted is None else [row(unshifted, 0.02, metric="unshifted")])


@pytest.mark.parametrize(
    ("rows", "reply", "words"),
    [
        (compared(0.0, 1.0, half=0.0), "No", "The weights are identical"),
        (compared(0.0, 1.0, cka=(1.0, 1.0), unshifted=1.0), "No", "The checkpoints are identical"),
        (compared(0.0, 1.0, cka=(0.99, 0.5), unshifted=0.5), "Partly", "The weights are identical, representations change"),
        (compared(0.05), "Yes", "change by more than 1 %"),
        (compared(0.005), "No", "barely change: by less than 1 %"),
        (compared(0.001, half=0.0001), "No", "less than rounding"),
        (compared(0.014, half=0.005), "Yes", "more than 1 %"),
        (compared(0.05, half=float("nan")), "Yes", "more than 1 %"),
        ([], "Cannot tell", "not compared"),
        (compared(float("nan")), "Cannot tell", "no relative norm"),
        (
            compared(0.0, 1.0, cka=(0.99,), unshifted=0.97),
            "No",
            "weights are identical, representations stay alike and next tokens",
        ),
        (compared(0.0, 1.0, cka=(0.97,), unshifted=0.75), "Partly", "weights are identical, representations stay alike and next"),
        (compared(0.0, 1.0, settings="hidden_act"), "No", "only weights were compared, and settings differ (hidden_act)"),
        (compared(0.108) + floor(0.153), "Yes", "1 % of their norm; the cosine with another seed's change is 0.02."),
        (compared(0.108) + floor(0.01, cosine=0.99), "Yes", "the cosine with another seed's change is 0.99."),
        (compared(0.108) + floor(0.0, cosine=float("nan")), "Yes", "more than 1 % of their norm."),
        (
            compared(0.108, cka=(0.99, 0.5), unshifted=0.5) + floor(0.153, cka=0.4, kl=(0.00173, 0.00367)),
            "Partly",
            "but representations and next tokens no more than between two seeds.",
        ),
        (
            compared(0.108, cka=(0.99, 0.5), unshifted=0.5) + floor(0.05, cka=0.4, kl=(0.1, 0.003)),
            "Partly",
            "but representations no more than between two seeds",
        ),
        (
            compared(0.108, cka=(0.99, 0.5), unshifted=0.5) + floor(0.153, cka=0.505, kl=(0.1, 0.003)),
            "Partly",
            "next tokens change; whether representations differ more than between two seeds is open.",
        ),
        (
            compared(0.108, cka=(0.99, 0.5), unshifted=0.5) + floor(0.05, cka=0.9, kl=(0.1, 0.003)),
            "Yes",
            "representations change and next tokens change.",
        ),
        (compared(0.05, cka=(0.99, 0.5), unshifted=0.5), "Yes", "change, representations change and next tokens change"),
        (compared(0.005, cka=(0.99, 0.98), unshifted=0.97), "No", "representations stay alike and next tokens stay the same"),
        (
            compared(0.005, cka=(0.99, 0.98), unshifted=0.5),
            "Partly",
            "barely change, representations stay alike and next tokens change",
        ),
        (compared(0.005, cka=(0.99, 0.95), unshifted=0.9), "Cannot tell", "whether representations change is open"),
    ],
)
def test_compare(rows, reply, words):
    verdict = within_limit(study("compare").verdict(table_of(rows)))
    assert (verdict.reply, words in verdict.why) == (reply, True), verdict.sentence


def context(match=0.7, p=0.01, share=0.9, beyond=0.5, way="LoRA", half=0.05, fv=None, pairing=0.3):
    at = {"item": way, "site": "chosen on the other tasks", "layer": 20}
    rows = [row(match, half, metric="match", **at), Row(value=p, metric="permutation p", **at)]
    rows.append(row(pairing, half, metric="gain", definition="match", condition=over("permuted shots"), **at))
    for condition, item, value in (
        ("estimate", "all tasks", share if fv is None else fv),
        ("task vector", "all tasks: task vector", share),
    ):
        rows.append(row(value, half, metric="share of few-shot gain", item="all tasks", condition=condition))
        gain = {"metric": "gain", "definition": "first-token accuracy", "condition": over("random heads")}
        rows.append(row(beyond, half, item=item, **gain))
    return rows


@pytest.mark.parametrize(
    ("rows", "reply", "words"),
    [
        (context(), "Yes", "where fine-tuning on them does; one"),
        (context(0.3), "Partly", "partly where"),
        (context(0.5), "Partly", "partly where"),
        (context(pairing=0.0), "Partly", "partly where"),
        (context(0.0), "No", "elsewhere than"),
        (context(0.12, half=0.2), "Cannot tell", "is open"),
        (context(p=0.06), "Cannot tell", "is open"),
        (context() + context(way="full fine-tuning"), "Yes", "where fine-tuning"),
        (context() + context(0.0, way="full fine-tuning"), "Partly", "partly where"),
        (context(0.0) + context(0.0, way="full fine-tuning"), "No", "elsewhere"),
        (context(half=float("nan")), "Cannot tell", "is open"),
        ([], "Cannot tell", "is open"),
    ],
)
def test_context(rows, reply, words):
    verdict = within_limit(study("context").verdict(table_of(rows)))
    assert (verdict.reply, words in verdict.why) == (reply, True), verdict.sentence


@pytest.mark.parametrize(
    ("rows", "function", "task"),
    [
        (context(share=0.9, fv=0.5), "Partly", "Yes"),
        (context(share=0.8, fv=0.1), "No", "Partly"),
        (context(share=0.5, fv=0.5, beyond=0.0), "Cannot tell", "Cannot tell"),
        (context(share=0.1, fv=0.1, beyond=0.0), "No", "No"),
        (context(share=0.3, fv=0.2, half=0.15), "Partly", "Partly"),
        ([], "Cannot tell", "Cannot tell"),
    ],
)
def test_context_of_each_vector(rows, function, task):
    parts = within_limit(study("context").verdict(table_of(rows))).parts
    assert (parts["Function vector"].reply, parts["Task vector"].reply) == (function, task)


def emergence(held, outside, *, half=0.03, lag=3.0, step=500.0, phi=14):
    at = {"item": f"phi = {phi}", "split": "step 1200"}
    rows = [
        row(held, half, metric="accuracy", **at),
        row(outside, half, metric="accuracy", condition="both facts OOD", **at),
        row(0.9, half, metric="accuracy", item="phi = 2", split="step 1200"),
        row(0.1, half, metric="accuracy", item=f"phi = {phi}", split="step 10"),
        row(step, 20.0, metric="step of 50 %", item=f"phi = {phi}"),
        row(lag, 0.5, metric="lag", item=f"phi = {phi}"),
    ]
    return rows


def worth(value, half=0.2, item="trick"):
    return [row(value, half, metric="compute-equivalent gain", item=item, split="by loss")]


@pytest.mark.parametrize(
    ("rows", "reply", "words"),
    [
        (emergence(0.95, 0.05), "Partly", "from step 500 on at phi = 14, 3.0 times later than trained ones, but never"),
        (emergence(0.95, 0.95), "Yes", "also of facts out of distribution"),
        (emergence(0.95, 0.5), "Partly", "out of distribution the accuracy is 0.50"),
        (emergence(0.95, 0.05, lag=1.2), "Partly", "at phi = 14, but never"),
        (emergence(0.95, 0.05, step=float("inf")), "Partly", "in the end"),
        (emergence(0.86, 0.05), "Cannot tell", "86 % of held-out"),
        (emergence(0.5, 0.05), "Cannot tell", "50 % of held-out"),
        (emergence(0.1, 0.05), "No", "never answer held-out ones"),
        (emergence(0.95, 0.05, half=float("nan")), "Cannot tell", "95 % of held-out queries"),
        (emergence(0.95, 0.05) + worth(2.0), "Partly", "but never"),
        (worth(2.0), "Yes", "1 of 1 enhancements"),
        (worth(0.5), "No", "0 of 1 enhancements"),
        (worth(1.1), "Cannot tell", "0 of 1"),
        (worth(float("nan")), "Cannot tell", "0 of 1"),
        (worth(2.0) + worth(0.5, item="other"), "Partly", "1 of 2"),
        ([row(0.9, metric="accuracy", item="skill", split="step 8")], "Yes", "1 of 1 probes"),
        ([row(0.1, metric="accuracy", item="skill", split="step 8")], "No", "0 of 1 probes"),
        ([row(0.5, metric="accuracy", item="skill", split="step 8")], "Cannot tell", "0 of 1 probes"),
        ([], "Cannot tell", "Neither a curve"),
    ],
)
def test_emergence(rows, reply, words):
    verdict = within_limit(study("emergence").verdict(table_of(rows)))
    assert (verdict.reply, words in verdict.why) == (reply, True), verdict.sentence


def test_every_question_has_rules():
    assert all(study(name).verdict for name in (*QUESTIONS, "compare", "contrast", "connect"))


def test_sides_and_joined():
    assert side(None) == "unclear"
    assert side({"lo": float("nan"), "hi": 1.0}) == "unclear"
    assert [side({"lo": a, "hi": b}, 0.5) for a, b in ((0.6, 0.7), (0.1, 0.2), (0.4, 0.6))] == ["above", "below", "unclear"]
    yes, no, open_ = (Verdict(reply, "") for reply in ("Yes", "No", "Cannot tell"))
    assert [joined(v) for v in ([yes, yes], [yes, no], [no, open_], [open_])] == ["Yes", "Partly", "Cannot tell", "Cannot tell"]


def test_a_tiny_run_gives_no_verdict_and_no_claims(tmp_path, capsys):
    assert command(["study", "entities", "--tiny", "--out", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"] is None
    assert "gives no verdict" in Path(told["page"]).read_text()
    assert command(["claims", "--out", str(tmp_path), "--json"]) == 0
    assert {row["verdict"] for row in json.loads(capsys.readouterr().out)} == {"not tested"}


def test_the_verdict_stands_in_the_run_the_page_and_the_answer(tmp_path, capsys, monkeypatch):
    """Of a small network that is no test run; printed last but one, with `--json`, in `run.json` and on the page."""
    from repscope.worlds.tiny import tiny

    monkeypatch.setattr("repscope.models.loading.sources.load", lambda *a, **k: tiny())
    order = [
        "study",
        "entities",
        "--entities",
        "elements",
        "--attribute",
        "block",
        "--context",
        "0",
        "--folds",
        "2",
        "--shuffles",
        "2",
    ]
    assert command([*order, "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert command([*order, "--out", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"]["sentence"] == lines[-2]
    folder = Path(lines[-1]).parent
    assert json.loads((folder / "run.json").read_text())["verdict"] == told["verdict"]
    assert f"<strong>{told['verdict']['reply']}.</strong>" in Path(lines[-1]).read_text()
