"""Conditions: the closed list of what a number was measured under. `Row.condition` is one of them; figures draw each in one style.

A condition is the estimate, a control (what remains when the effect is removed), a baseline (another way to the same number), a
bound (what no method can pass), or a setting of the estimate. Some take a parameter, such as "rank 8". A gain names what it is
compared with: "over shuffled labels".
"""

import re
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from repscope.errors import unknown

Role = Literal["estimate", "control", "baseline", "bound", "setting"]

ESTIMATE = "estimate"
SHARED = "estimate, no shared token"
RANDOM = "random direction"
SHUFFLED_LABELS = "shuffled labels"
BAG = "bag of token embeddings"
FIRST_TOKEN = "first token alone"
PROMPTING = "prompting"
SWAPPED = "swapped labels"
NO_BIAS = "no early bias"
MATCHED = "matched on ID loss"
SHUFFLED_GROUPS = "shuffled groups"
INDEPENDENT = "independent pretrainings"
REBASIN = "independent pretrainings, weights matched"
COPY = "permuted copy"
COPY_MATCHED = "permuted copy, weights matched"
ANOTHER_SEED = "another seed"
ROUNDING = "rounding to bfloat16"
OTHER_SUBJECTS = "mean vector of other subjects"
ZERO_SHOT = "zero-shot"
FEW_SHOT = "few-shot"
SHUFFLED_SHOTS = "permuted shots"
SHUFFLED_WITH_VECTOR = "vector after permuted shots"
FUNCTION_VECTOR = "function vector"
TASK_VECTOR = "task vector"
RANDOM_HEADS = "random heads"
OTHER_TASK = "vector of another task"
OTHER_SHOTS = "shots of another task"
NEUTRAL = "neutral prefix"
OTHER_PROMPT = "prompt about something else"
BASE_NETWORK = "base network"
LORA = "LoRA"
FULL_TUNING = "full fine-tuning"
LORA_PERMUTED = "LoRA, permuted outputs"
FULL_TUNING_PERMUTED = "full fine-tuning, permuted outputs"
TUNED_PERMUTED = "fine-tuned on permuted outputs"
PERMUTED_TASKS = "permuted tasks"
ANOTHER_HALF = "difference of halves"
BFLOAT16 = "bfloat16 weights"
FITTED_VECTORS = "fitted vectors"
PERMUTED_GAPS = "permuted gaps"
PERMUTED_METHODS = "permuted methods"
UNTRAINED = "untrained network"
OTHER_FAMILY = "another family"
PIXELS = "pixels"
WORDS = "word counts"
LOWER_CEILING = "lower noise ceiling"
UPPER_CEILING = "upper noise ceiling"
RANDOM_RECORDING = "recording of random signals"
UNTRAINED_RECORDING = "recording of an untrained network"
PERMUTED_CELLS = "permuted cells"
REWIRED = "rewired, degrees kept"
IDENTITY_DECODER = "identity decoder"
RANDOM_WEIGHTS = "random weights"
FEWER_TOKENS = "sentence with fewer tokens"
PERMUTED_PIXELS = "permuted pixels"
REAL_IMAGES = "images of the data"
SHARED_LABELS = "random labels, shared"
OWN_LABELS = "random labels, own"
ORTHOGONAL = "orthogonal inputs"
PERMUTED_CORRECTNESS = "permuted correctness"
MATCHED_GRAMMAR = "matched grammar"
PERMUTED_PHENOMENA = "permuted phenomena"
REGRESSED_OUT = "frequency, distance and length regressed out"
WITHIN_TERMS = "within wider phenomena"
ABLATED_MLPS = "MLP outputs replaced"
ABLATED_ATTENTION = "attention outputs replaced"
NOISE_MLPS = "random change of MLP outputs"
NOISE_ATTENTION = "random change of attention outputs"
CUT = "attention between the name's tokens cut"
CUT_BEFORE = "attention to earlier tokens cut"
SINGLES = "sum over single tokens"
PAIRS = "sum over pairs of tokens"
ROTATED = "random rotation"
LATENTS = "SAE latents"
AFFINE_EDITOR = "affine editor"
CONTEXT_PROMPT = "sentence in the prompt"
RAW_ATTRIBUTE = "raw attribute vector"
LRC_EDIT = "edit by the relation's map"
UNEDITED = "unedited"
CONFIDENCE = "confidence of the answer"


@dataclass(frozen=True)
class Condition:
    """One condition.

    name: as in tables. meaning: one sentence. role: what it is for. style: how figures draw it, a key of `report.style.STYLES`;
    conditions that share a style never stand in one figure.
    """

    name: str
    meaning: str
    role: Role
    style: str


CONDITIONS: dict[str, Condition] = {
    c.name: c
    for c in (
        # all studies
        Condition(ESTIMATE, "The number that the study is about.", "estimate", "blue"),
        Condition(
            RANDOM, "A direction of equal norm, drawn uniformly on the sphere (of weights: for each tensor).", "control", "grey"
        ),
        Condition(RANDOM_WEIGHTS, "The same architecture with random weights.", "control", "green"),
        # entities
        Condition(SHARED, "The estimate where no tested name shares a token with a name in training.", "setting", "sky"),
        Condition(SHUFFLED_LABELS, "The same probe, trained on permuted labels.", "control", "grey"),
        Condition(BAG, "A probe on the mean of the name's token embeddings, without the network.", "baseline", "vermillion"),
        Condition(FIRST_TOKEN, "A probe at the first token of the name.", "baseline", "purple"),
        Condition("character n-grams", "A probe on the letters of the name.", "baseline", "orange"),
        Condition("majority class", "The most common class of the training folds.", "control", "black"),
        Condition(ABLATED_MLPS, "Outputs of the MLPs at the name's tokens, replaced in some blocks.", "setting", "blue dashed"),
        Condition(ABLATED_ATTENTION, "Outputs of attention at the name's tokens, replaced in blocks.", "setting", "vermillion"),
        Condition(NOISE_MLPS, "Random vectors of equal energy added to the outputs of the MLPs there.", "control", "grey"),
        Condition(NOISE_ATTENTION, "Random vectors of equal energy added to the outputs of attention there.", "control", "orange"),
        Condition(CUT, "No token of the name attends to another token of it, in some blocks.", "setting", "green"),
        Condition(CUT_BEFORE, "No token of the name attends to those between the first and the name.", "control", "black"),
        Condition(SINGLES, "The name's vector predicted as a sum of functions of its single tokens.", "baseline", "vermillion"),
        Condition(PAIRS, "The name's vector predicted as a sum of functions of pairs of its tokens.", "baseline", "purple"),
        Condition(ROTATED, "The same features after a random rotation of their axes.", "control", "grey"),
        Condition(LATENTS, "Latents of a sparse autoencoder in place of neurons.", "setting", "green"),
        # relations
        Condition("copied from the subject", "The object begins like the subject.", "baseline", "purple"),
        Condition("majority object", "The most common object of the choosing half.", "control", "black"),
        Condition("beta 1", "The map without its scale β.", "baseline", "sky"),
        Condition("translation", "The subject's vector plus the mean difference of object and subject.", "baseline", "green"),
        Condition("logit lens", "The subject's vector through the final norm and the unembedding.", "baseline", "purple"),
        Condition("ridge map, whole half", "Ridge regression on all facts of the choosing half.", "baseline", "vermillion"),
        Condition("ridge map, the same examples", "Ridge regression on the examples of the map.", "baseline", "orange"),
        Condition("map from the embedding", "The map of the subject's token embedding.", "baseline", "sky"),
        Condition("map on another subject's vector", "The map applied to the vector of another subject.", "control", "grey"),
        Condition("ridge probe", "A ridge classifier on the same subjects.", "baseline", "vermillion"),
        Condition("logistic probe", "Logistic regression on the same subjects.", "baseline", "orange"),
        Condition("class means", "The class whose mean points most along the subject's vector.", "baseline", "green"),
        Condition("difference of means", "A direction: mean of one class minus the mean of the others.", "baseline", "purple"),
        Condition("shuffled objects", "Concepts of permuted objects.", "control", "grey"),
        Condition(
            "mean of the inverses",
            "Concepts by the mean of the examples' inverses, not the inverse of their mean.",
            "baseline",
            "sky",
        ),
        Condition("mean of the object's tokens", "Concepts from the mean over all tokens of the object.", "baseline", "sky"),
        Condition(
            OTHER_SUBJECTS, "The subject's vector replaced by the mean vector of subjects with the new object.", "bound", "green"
        ),
        Condition(AFFINE_EDITOR, "An editor with a bias, at the same block.", "setting", "green"),
        Condition(CONTEXT_PROMPT, "The sentence that says the new fact stands in the prompt; nothing is edited.", "bound", "black"),
        Condition(RAW_ATTRIBUTE, "The attribute's vector in the sentence, at the norm of the editor's change.", "baseline", "sky"),
        Condition(LRC_EDIT, "The step by the relation's map (LRC), at the block and rank chosen for it.", "baseline", "purple"),
        Condition(UNEDITED, "The model as it is.", "control", "orange"),
        Condition(CONFIDENCE, "Probability of the model's most likely token after the question.", "baseline", "black"),
        # features
        Condition("dense probe", "A probe on all features of the site.", "baseline", "black"),
        Condition("neurons", "The neurons of the same block's MLP instead of latents.", "baseline", "orange"),
        Condition(
            "random dictionary",
            "An autoencoder of equal size and sparsity whose features are random unit vectors.",
            "control",
            "grey",
        ),
        Condition(
            "principal components", "As many leading principal components as there are active latents.", "baseline", "vermillion"
        ),
        Condition("permuted coordinates", "The second dictionary with its coordinates permuted.", "control", "purple"),
        # contrast
        Condition("unsteered", "The model without a direction.", "baseline", "black"),
        Condition(PROMPTING, "The model asked in words.", "baseline", "vermillion"),
        Condition("PCA of differences", "A direction: first component of the differences of pairs.", "baseline", "sky"),
        Condition("logistic regression", "A direction: weights of a logistic regression.", "baseline", "orange"),
        Condition("linear discriminant", "A direction: weights of a linear discriminant.", "baseline", "green"),
        Condition(SWAPPED, "The same fit with half of the labels swapped.", "control", "grey"),
        # discover, bench
        Condition("L2", "Directions that maximise the L2 norm of their effect.", "baseline", "vermillion"),
        Condition("supervised", "Directions fitted with labels.", "baseline", "vermillion"),
        Condition("oracle", "The planted directions, or directions optimised for what is measured.", "bound", "black"),
        Condition(REAL_IMAGES, "The images that the generator was trained on, in place of its own.", "bound", "black"),
        Condition(PERMUTED_PIXELS, "These images with their pixels permuted, in the same way for all.", "control", "grey"),
        Condition("planted", "The network in which the behaviour was planted, without a direction.", "baseline", "green"),
        # minimal-pairs
        Condition(FEWER_TOKENS, "The sentence of each pair that has fewer tokens; ties count half.", "baseline", "black"),
        # bayes
        Condition(
            "pretraining Bayes", "The exact predictor of the mixture of concepts that networks are trained on.", "bound", "black"
        ),
        Condition(
            "format-aware Bayes",
            "The exact predictor of an observer who knows that a prompt is made of examples.",
            "bound",
            "orange",
        ),
        # emergence
        Condition("facts", "Facts that networks are trained on, those that take part in no query left out.", "setting", "green"),
        Condition("facts OOD", "Facts that networks are trained on, and that take part in no trained query.", "setting", "sky"),
        Condition("trained queries", "Two-hop queries that networks are trained on.", "setting", "orange"),
        Condition("first fact OOD", "Queries whose first fact takes part in no trained query.", "setting", "purple"),
        Condition("second fact OOD", "Queries whose second fact takes part in no trained query.", "setting", "sky"),
        Condition("both facts OOD", "Queries whose facts take part in no trained query.", "setting", "vermillion"),
        Condition("learned evenly", "Every example is learned at a random point of the logarithmic axis.", "control", "grey"),
        Condition("without the patch", "How often that answer is given without the patch.", "control", "grey"),
        Condition("unigram", "How often each entity is a tail of the relation, wherever it starts.", "control", "grey"),
        Condition("nearest neighbours", "Tails of the relation at the entities with the most similar edges.", "control", "green"),
        Condition("shuffled graph", "Path sums over a graph whose edges start from permuted entities.", "control", "grey"),
        Condition("unweighted paths", "Every path counts by the probability that a random walk takes it.", "setting", "sky"),
        Condition("paths weighted by precision", "Paths count by how often they end where the relation does.", "setting", "orange"),
        Condition(
            "paths with fitted weights", "The mixture of paths that makes the seen edges most likely.", "setting", "blue dashed"
        ),
        Condition("another answer", "A worse answer, or that to another prompt of the same probe.", "control", "grey"),
        Condition("first copy", "The same random tokens where they stand for the first time.", "control", "grey"),
        Condition("other tokens", "Attention of the same head to the other tokens of the first copy.", "control", "grey"),
        Condition("other heads", "The mean over all heads that were not chosen.", "control", "grey"),
        Condition("known gain", "The gain that a calibration has by construction.", "bound", "black"),
        Condition("dMMSE", "The exact predictor of the regression tasks that networks are trained on.", "bound", "black"),
        Condition("ridge", "The exact predictor of regression tasks that are normally distributed.", "bound", "orange"),
        Condition("LSTM", "Recurrent networks trained on the same documents.", "setting", "sky"),
        Condition(UNTRAINED, "The same networks before training.", "control", "grey"),
        Condition("trained on one concept", "Networks that saw documents of one concept alone.", "setting", "purple"),
        Condition(
            "symbol pair counts",
            "How often each symbol followed the current one in the text so far, plus one count spread evenly.",
            "baseline",
            "vermillion",
        ),
        # paths
        Condition(
            NO_BIAS, "Runs of one recipe without an early bias; groups are the strategies that they took.", "control", "grey"
        ),
        Condition(MATCHED, "The estimate at checkpoints of equal in-distribution (ID) loss.", "setting", "sky"),
        Condition(SHUFFLED_GROUPS, "The same runs with permuted groups.", "control", "grey"),
        Condition(INDEPENDENT, "Runs from independent pretrainings.", "control", "black"),
        Condition(REBASIN, "Runs from independent pretrainings, after weight matching.", "setting", "blue dashed"),
        Condition(COPY, "A run and a copy with permuted units.", "control", "grey"),
        Condition(COPY_MATCHED, "A run and a copy with permuted units, after weight matching.", "bound", "green"),
        Condition("in-domain accuracy", "The published in-domain accuracy in place of the score.", "control", "grey"),
        Condition("in-domain accuracy regressed out", "The score's residual, one slope for all runs.", "setting", "sky"),
        Condition(
            "in-domain accuracy regressed out, slope within clusters",
            "The score's residual, slope within clusters.",
            "setting",
            "green",
        ),
        Condition(SHARED_LABELS, "Labels drawn at random, the same for all networks: not valid as a control.", "setting", "orange"),
        Condition(OWN_LABELS, "Labels drawn at random for each network.", "control", "purple"),
        Condition(ORTHOGONAL, "One orthogonal input per example, none easier than another.", "control", "grey"),
        Condition(PERMUTED_CORRECTNESS, "Correctness permuted over examples within each network.", "control", "black"),
        Condition(MATCHED_GRAMMAR, "A grammar whose phenomena share one frequency and one distance.", "control", "grey"),
        Condition(PERMUTED_PHENOMENA, "Each phenomenon's accuracies permuted over runs and losses.", "control", "black"),
        Condition(REGRESSED_OUT, "What the ranks of frequency, distance and length leave of the accuracies.", "setting", "sky"),
        Condition(WITHIN_TERMS, "Accuracies minus the mean of each wider phenomenon.", "setting", "sky"),
        # compare, drift
        Condition(
            ANOTHER_SEED, "Two tuned checkpoints that differ in their seed alone, compared with each other.", "control", "black"
        ),
        Condition(ROUNDING, "The base and the same weights rounded to bfloat16.", "control", "purple"),
        Condition(BASE_NETWORK, "The same measurement on the base network, before tuning.", "baseline", "black"),
        Condition("other prompts", "The base network on other prompts, in place of the tuned network.", "control", "grey"),
        Condition("refit on the tuned network", "The same fit repeated on the tuned network.", "bound", "orange"),
        Condition("two halves", "Two fits to different halves of the prompts, on one network.", "bound", "sky"),
        Condition("vector of another pair", "The mean change of another pair of networks, at equal norm.", "control", "purple"),
        Condition("never had the ability", "A network that was never trained to have the ability.", "control", "vermillion"),
        Condition("permuted latents", "One source's decoder vectors permuted among the latents.", "control", "grey"),
        # context
        Condition(ZERO_SHOT, "The query without examples and without a vector.", "baseline", "black"),
        Condition(FEW_SHOT, "The query after k examples.", "bound", "green"),
        Condition(SHUFFLED_SHOTS, "The query after k examples whose outputs are permuted.", "control", "purple"),
        Condition(SHUFFLED_WITH_VECTOR, "The vector added to the query after k examples with permuted outputs.", "setting", "sky"),
        Condition(FUNCTION_VECTOR, "The sum of a task's most effective heads, added to the query.", "setting", "blue dashed"),
        Condition(TASK_VECTOR, "The residual stream of few-shot prompts put in place of the query's.", "baseline", "vermillion"),
        Condition(RANDOM_HEADS, "A vector of as many random heads, of equal norm.", "control", "grey"),
        Condition(OTHER_TASK, "The vector of another task, of equal norm.", "control", "orange"),
        Condition(OTHER_SHOTS, "The query after as many examples of another task, of as many tokens.", "control", "orange"),
        Condition(NEUTRAL, "The query after neutral text that is as many tokens as the examples.", "baseline", "black"),
        Condition(OTHER_PROMPT, "The base network after a prompt about something else, of as many tokens.", "control", "orange"),
        Condition(LORA, "The network after LoRA on the same k examples.", "setting", "blue dashed"),
        Condition(FULL_TUNING, "The network after full fine-tuning on the same k examples.", "setting", "sky"),
        Condition(LORA_PERMUTED, "LoRA on the same examples with permuted outputs.", "control", "grey"),
        Condition(FULL_TUNING_PERMUTED, "Full fine-tuning on the same examples with permuted outputs.", "control", "grey"),
        Condition(TUNED_PERMUTED, "The estimate with fine-tuning on permuted outputs.", "control", "vermillion"),
        Condition(PERMUTED_TASKS, "The same shifts with the tasks of one side permuted.", "control", "black"),
        # drift
        Condition(ANOTHER_HALF, "The difference of the same number from two halves of the documents.", "control", "purple"),
        Condition(BFLOAT16, "Training that rounds weights to bfloat16 after every update.", "setting", "orange"),
        Condition(FITTED_VECTORS, "One constant vector per site, fitted to the tuned network's next tokens.", "setting", "sky"),
        Condition(PERMUTED_GAPS, "The same levels with permuted gaps, within each seed.", "control", "grey"),
        Condition(PERMUTED_METHODS, "The same methods, permuted within each seed.", "control", "grey"),
        # brain
        Condition(OTHER_FAMILY, "Networks trained with another objective than those of the estimate.", "control", "vermillion"),
        Condition(PIXELS, "The pixels of the stimuli in place of a network.", "baseline", "orange"),
        Condition(WORDS, "Counts of the words of the stimuli in place of a network.", "baseline", "orange"),
        Condition(LOWER_CEILING, "Similarity of each subject to the mean of the others.", "bound", "black"),
        Condition(UPPER_CEILING, "Similarity of each subject to the mean of all, that subject included.", "bound", "purple"),
        Condition(RANDOM_RECORDING, "A recording of signals that subjects share and that no network computes.", "control", "sky"),
        Condition(UNTRAINED_RECORDING, "A recording of units of a network before training.", "control", "green"),
        # wiring
        Condition(PERMUTED_CELLS, "The same with the cells of the functional measure permuted.", "control", "grey"),
        Condition(
            "pairs taken as independent", "An interval that ignores that pairs share cells: too narrow.", "baseline", "vermillion"
        ),
        Condition(REWIRED, "Synapses rewired; each cell keeps its numbers of partners.", "control", "black"),
        Condition(
            "matched pairs", "Compared with unconnected pairs of the same presynaptic cell and equal exposure.", "control", "orange"
        ),
        Condition(
            "matched on common input",
            "Compared with unconnected pairs of the same presynaptic cell and equal input from the same cells.",
            "control",
            "green",
        ),
        Condition("interval over cells", "The test by whether the jackknife interval over cells contains 0.", "setting", "sky"),
        Condition("exposure, no synapse", "Pairs that are in contact or close and have no synapse.", "control", "purple"),
        Condition("no exposure", "Pairs that are neither in contact nor close.", "control", "green"),
        Condition("no exposure offset", "The same without regard to how much contact pairs have.", "setting", "sky"),
        Condition("effects of presynaptic cells alone", "The same without effects of postsynaptic cells.", "setting", "purple"),
        Condition(
            "effects of presynaptic cells alone, no offset",
            "The same without effects of postsynaptic cells and without exposure.",
            "setting",
            "green",
        ),
        # digital twins
        Condition("LN model", "One linear filter and one nonlinearity per neuron.", "baseline", "vermillion"),
        Condition("untrained core", "The same readouts on a core that was never trained.", "control", "grey"),
        # self and other
        Condition("within agent", "Held-out trials of the agent that the decoder was fitted on.", "bound", "green"),
        Condition(
            IDENTITY_DECODER, "A decoder of who acted, in place of the outcome, tested on outcomes.", "control", "vermillion"
        ),
        Condition("identity removed", "Cross-decoding without the directions that tell who acted.", "setting", "sky"),
        Condition("matched stimuli", "Trials in which no stimulus predicts the outcome.", "control", "orange"),
        Condition("disjoint stimuli", "A decoder fitted and tested on different stimuli.", "control", "purple"),
        # verify
        Condition("tolerance", "The largest error at which a check passes.", "bound", "black"),
        Condition("not applicable", "The model has nothing that the check could test.", "setting", "grey"),
        Condition("rows shifted by one", "The error when each row is compared with the next one.", "control", "grey"),
        Condition("edited compared with unedited", "The error that an edit makes.", "control", "grey"),
        Condition("sum without the MLP", "The error when the output of the MLP is left out of the sum.", "control", "grey"),
    )
}
#: Conditions with a parameter: pattern of the whole name → the condition, with the pattern as its name.
PARAMETRISED: dict[str, Condition] = {
    c.name: c
    for c in (
        Condition(
            r"context: last \d+ tokens", "The network reads only the first token and this many last ones.", "setting", "ramp"
        ),
        Condition(r"rank \d+", "The estimate at this rank of the inverse.", "setting", "sky"),
        Condition(r"dose [\d.e+-]+", "The estimate at this multiple of the step.", "setting", "sky"),
        Condition(r"map of .+", "The map of another relation on these subjects.", "control", "grey"),
        Condition(r"(LoRA|full fine-tuning), step \d+", "Fine-tuning stopped at this step.", "setting", "ramp"),
        Condition(r"best of \d+ random directions", "The most effective of several random directions.", "control", "grey"),
    )
}
_OVER, _SHUFFLED = "over ", f", {SHUFFLED_GROUPS}"


def over(name: str) -> str:
    """The condition of a gain: the estimate minus this condition."""
    return _OVER + name


def compared(name: str) -> str:
    """What a gain is over; other names as they are.

    >>> compared("over shuffled labels"), compared("estimate")
    ('shuffled labels', 'estimate')
    """
    return name.removeprefix(_OVER)


def shuffled(name: str) -> str:
    """The condition of the same runs with permuted groups."""
    return SHUFFLED_GROUPS if name == ESTIMATE else name + _SHUFFLED


@cache
def condition(name: str) -> Condition:
    """The condition of that name.

    Raises
    ------
    ValueError
        For a name that is not a condition; names the nearest.

    >>> condition("over rank 8").style == condition("rank 8").style
    True
    """
    if name in CONDITIONS:
        return CONDITIONS[name]
    if name.startswith(_OVER):
        base = condition(compared(name))
        return replace(base, name=name, meaning=f"The estimate minus: {base.meaning}")
    if name.endswith(_SHUFFLED):
        return replace(
            CONDITIONS[SHUFFLED_GROUPS], name=name, meaning=f"Permuted groups; {condition(name.removesuffix(_SHUFFLED)).meaning}"
        )
    for pattern, base in PARAMETRISED.items():
        if re.fullmatch(pattern, name):
            return replace(base, name=name)
    raise unknown("condition", name, CONDITIONS)
