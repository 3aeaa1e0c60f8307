"""Names in the tables of the `drift` study: metrics, items and splits."""

from repscope.worlds.rewarded.methods import BEST as BEST
from repscope.worlds.rewarded.methods import DPO as DPO
from repscope.worlds.rewarded.methods import GRPO as GRPO
from repscope.worlds.rewarded.methods import OFF_POLICY as OFF_POLICY
from repscope.worlds.rewarded.methods import REINFORCE as REINFORCE
from repscope.worlds.rewarded.methods import RL_SAMPLES as RL_SAMPLES

NORM, RANK = "relative Frobenius norm", "share of the full rank"
SAME32, SAME16 = "unchanged in float32", "unchanged in bfloat16"
CKA, SHIFT = "CKA", "mean shift"
KL, JS = "KL", "JS"
SHIFTED, MARGINAL, UNSHIFTED = "shifted", "marginal", "unshifted"
LOSS, REWARD = "loss", "reward"
TOTALS = (NORM, RANK, SAME32, SAME16, CKA, SHIFT, KL, JS, UNSHIFTED, MARGINAL, SHIFTED, LOSS)

CORRELATION, SLOPE, PER_FLOP = "rank correlation", "slope", "reward per GFLOP"
RECOVERED = "KL recovered"
READS, POINTS, ACTS = "reads", "points", "acts"
DIFFERENCE, RATIO = "difference", "ratio"
REACHED, UPDATES, GFLOP = "reached", "updates", "GFLOP"

AT_REWARD, AT_KL = "equal reward", "equal KL"
MATCHES = {AT_REWARD: "reward", AT_KL: "KL"}  #: what is equal → the value that is

IMITATION = (OFF_POLICY, RL_SAMPLES, BEST)
POLICY = (REINFORCE, GRPO)
EXPERT = "SFT, expert"  #: of the gap: samples of a policy that RL has trained further
GAP_METRICS = (NORM, CKA, KL)  #: CKA as 1 − CKA
SHORT = {
    OFF_POLICY: "SFT demonstrations",
    RL_SAMPLES: "SFT samples of RL",
    BEST: "SFT best of base",
    DPO: DPO,
    REINFORCE: REINFORCE,
    GRPO: GRPO,
}


def at_rate(match: str, rate: float, main: float) -> str:
    """The split of a number: "equal reward", or "equal reward, rate 0.003" at another rate than the main one."""
    return match if rate == main else f"{match}, rate {rate:g}"


BEFORE, REFITTED, TWO_HALVES, OTHER_METHOD = "base network", "refit on the tuned network", "two halves", "vector of another pair"
