"""Names of the parts of `brain` and of the steps, metrics and items of those after the first: twin, wiring, self and other."""

REPRESENTATION, TWIN, WIRING, SELF_OTHER = "representation", "twin", "wiring", "self-other"
PARTS = (REPRESENTATION, TWIN, WIRING, SELF_OTHER)

# steps
FITTED, HELD_OUT, RECORDED = "twin", "held-out neurons", "twin of the recording"
LIKE_TO_LIKE, SIGNALS, COMMON_INPUT = "like-to-like", "signals", "common input"
SIMILARITY_OF, SIGNALS_OF, INPUT_OF = "connectome, similarity", "connectome, signals", "connectome, common input"
DECODED, SHARED_WIRING, TRIALS = "self and other", "wiring of sharing", "trials"

# metrics that only this study has
P_DECODED = "p of decoding across agents"
INPUT, BEYOND = "similarity by common input", "similarity beyond the pairwise slope"

# items
SIMULATED, SIMULATED_NEURONS = "simulated", "simulated neurons"
ELEGANS = "C. elegans"
WORM = "worm"  #: as a connectome of the options

# names of verdicts on the page
VERDICTS = {
    TWIN: "Digital twin",
    WIRING: "Wiring, simulated",
    SIMILARITY_OF: "Like-to-like",
    SIGNALS_OF: "Synapses and signals",
    SELF_OTHER: "Self and other, simulated",
    TRIALS: "Self and other",
}


def simulated(item: str) -> str:
    """The item of one simulated connectome that is shown.

    >>> simulated("no like-to-like")
    'simulated, no like-to-like'
    """
    return f"{SIMULATED}, {item}"
