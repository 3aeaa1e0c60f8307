"""One of the stacked networks as a Hugging Face model, and as a folder that every tool of repscope opens."""

from pathlib import Path
from typing import Any

from repscope.disk import whole_folder
from repscope.errors import UserError
from repscope.models.loading.stacked_weights import State, runs_of, unstack
from repscope.worlds.small_lm.transformer import Shape


def huggingface(shape: Shape, state: State, network: int) -> Any:
    """One network as transformers' `GPT2LMHeadModel`, in evaluation mode, with weights of its own.

    Raises
    ------
    UserError
        When there are fewer networks.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    if not 0 <= network < runs_of(state):
        raise UserError(f"There is no network {network} among {runs_of(state)}; networks are counted from 0.")
    model = GPT2LMHeadModel(GPT2Config.from_dict(shape.settings()))
    weights = unstack(state, network)
    model.load_state_dict({**weights, "lm_head.weight": weights["transformer.wte.weight"]}, strict=True)
    return model.eval()  # type: ignore[no-untyped-call]


def write_folder(shape: Shape, state: State, network: int, folder: Path) -> Path:
    """One network as a folder with config.json, model.safetensors and a tokenizer of one word per symbol: "0", "1", ….

    The tokenizer splits at spaces: the text "3 0 12" is the tokens 3, 0, 12.
    """
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with whole_folder(folder) as partial:
        huggingface(shape, state, network).save_pretrained(partial)
        _tokenizer(shape.vocab).save_pretrained(partial)
    if shown:
        logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    return folder


def _tokenizer(vocab: int) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # what is no symbol gets an id outside the network's vocabulary: running it is an error, not a wrong number
    core = Tokenizer(models.WordLevel({str(i): i for i in range(vocab)} | {"<unk>": vocab}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core)  # type: ignore[no-untyped-call]
