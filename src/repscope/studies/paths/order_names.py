"""Names in the rows on the order of learning: metrics, definitions, items, shared by steps, page and verdict."""

ORDER = "order correlation"
ARCHITECTURES = "across architectures, family means"
WITHIN, CLASSES, ACROSS = "within one architecture", "within one architecture, within classes", "across architectures"
ALL_RUNS = "all pairs of runs"
LOSS, STEP = "at matched loss", "at matched step"
BIMODALITY = "bimodality"
CONCORDANCE, COMPONENT, FLEISS, COHEN = "Kendall's W", "first component", "Fleiss' kappa", "Cohen's kappa"
DIGITS, BLIMP = "digits", "BLiMP summary"
OVER_LOSSES = "mean over losses"
SHARE, DEPENDENCE = "share of variance", "path dependence"
GRAMMARS = ("English", "matched")  #: the second is the control
