"""What an edit of a subject does: to the question, to paraphrases of it, to other facts, and to a text about the subject.

1. All changes of one question are variants of it (`prompt_variants`): shared lower blocks and positions run once.
2. Efficacy and generalisation: the most likely token begins the new object, after the question and after paraphrases of it.
   Specificity: the most likely token stays what it was, for another fact of the subject and for another subject in the same text.
   Essence: TF-IDF cosine of what the model writes about the subject, with and without the edit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from repscope.errors import UserError
from repscope.models.edits import Edit
from repscope.models.language import LanguageModel
from repscope.models.prompts import Prompt
from repscope.read.known_facts import starts_with


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What each change does to one question. said: its most likely token. log_target, log_original: log-probabilities of the first
    tokens of the new and the old object. The first entry of each is the unedited network.
    """

    said: Int[np.ndarray, "variant"]
    log_target: Float[np.ndarray, "variant"]
    log_original: Float[np.ndarray, "variant"]
    kl: Float[np.ndarray, "variant"]

    def hits(self, lm: LanguageModel, obj: str) -> Float[np.ndarray, "variant"]:
        """Whether the most likely token begins an object."""
        return np.array([float(starts_with(lm.tokenizer.decode([int(t)]), obj)) for t in self.said])


def outcomes(logits: Float[np.ndarray, "variant vocab"], target: int, original: int) -> Outcomes:
    """From the logits of one question, unedited first. kl: KL(unedited ‖ edited) of the next token, in nats."""
    wide = logits.astype(np.float64)
    top = wide.max(-1, keepdims=True)
    logp = wide - top - np.log(np.exp(wide - top).sum(-1, keepdims=True))
    kl = (np.exp(logp[:1]) * (logp[:1] - logp)).sum(-1)
    return Outcomes(logits.argmax(-1), logp[:, target], logp[:, original], kl)


def essence(
    lm: LanguageModel, prompts: Sequence[Prompt], edit: Edit | Sequence[Prompt], *, new_tokens: int = 20
) -> Float[np.ndarray, "prompt"]:
    """TF-IDF cosine of the continuations with and without an edit (or after other prompts); 1 where the texts are equal.

    Raises
    ------
    UserError
        For no prompt.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not prompts:
        raise UserError("There is no prompt to continue; give at least one.")
    plain = [c.text for c in lm.generate(list(prompts), new_tokens)]
    if isinstance(edit, Edit):
        with lm.edit(edit):
            changed = [c.text for c in lm.generate(list(prompts), new_tokens)]
    else:
        changed = [c.text for c in lm.generate(list(edit), new_tokens)]
    fitted = TfidfVectorizer(token_pattern=r"\S+").fit([text or "." for text in (*plain, *changed)])
    a, b = (fitted.transform([text or "." for text in texts]) for texts in (plain, changed))
    return np.asarray(np.asarray(a.multiply(b).sum(1)).ravel())


def with_context(prompt: Prompt, context: Prompt) -> Prompt:
    """A prompt after a sentence on a line of its own: the network is told in words. Spans move along."""
    head = context.text + "\n"
    moved = {name: (a + len(head), b + len(head)) for name, (a, b) in prompt.spans.items()}
    return Prompt(head + prompt.text, moved, prompt.special)


def equal_norm(vectors: Float[np.ndarray, "fact d_model"], like: Float[np.ndarray, "fact d_model"]) -> np.ndarray:
    """Vectors scaled to the norms of others, one by one."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: np.ndarray = vectors * np.linalg.norm(like, axis=1, keepdims=True) / np.where(norms > 0, norms, 1.0)
    return scaled
