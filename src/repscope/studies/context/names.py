"""Names in the tables of the `context` study: metrics, items, and texts of splits."""

from repscope.conditions import FULL_TUNING, LORA

ACCURACY, SHARE, GAIN = "first-token accuracy", "share of few-shot gain", "gain"
MATCH, SAME, OTHERS, P = "match", "match, same task", "match, other tasks", "permutation p"
RAW, TOP, PER_QUERY, RECOVERED = "raw cosine", "top-1", "cosine per query", "recovered KL"
PROMPT = "KL recovered by the prompt"
AGREEMENT, STEPS = "agreement with few-shot", "steps"
ALL = "all tasks"
SIDE = "task vector"  #: a gain of the task vector has the item "TASK: task vector"
WAYS = (LORA, FULL_TUNING)  #: of fine-tuning, as conditions and items

SHARE_DEFINITION = "(accuracy - zero-shot) / (few-shot - zero-shot), first token"
CHOSEN = "chosen on the other tasks"  #: site of a match whose block the other tasks choose
ALONE = "test items, query alone"  #: split of scores without examples, as `trace.task_shift.outcomes` has it
REPORTED = "each task at the block of the others"  #: split of it


def sided(item: str, side: str = "") -> str:
    """The item of a gain of another side than the estimate.

    >>> sided("all tasks"), sided("all tasks", "task vector")
    ('all tasks', 'all tasks: task vector')
    """
    return f"{item}: {side}" if side else item


def of(item: str, way: str) -> str:
    """The item of a task and a way of adapting."""
    return f"{item}, {way}"


def step_of(condition: str) -> tuple[str, int | None]:
    """Way and step of a condition such as "LoRA, step 4"; no step of others.

    >>> step_of("full fine-tuning, step 8"), step_of("few-shot")
    (('full fine-tuning', 8), ('few-shot', None))
    """
    way, found, step = condition.rpartition(", step ")
    return (way, int(step)) if found else (condition, None)
