"""Options of `compare`."""

from pathlib import Path

from pydantic import Field

from repscope.studies.run.options import Dtype, StudyOptions, TableOptions


class CompareOptions(StudyOptions, TableOptions):
    """Options of `compare`."""

    checkpoints: tuple[str, ...] = Field(
        (),
        description="Base and tuned checkpoint: folders, hub ids, aliases, .gguf or safetensors files; a LoRA folder alone names "
        "its base.",
    )
    floor: str | None = Field(None, description="Another checkpoint, tuned the same way with another seed: the noise floor.")
    data: str | None = Field(
        None,
        description="Prompts: .txt with one per line, or a table; requests and short texts if not given. "
        "Representations are read at the last token of each prompt.",
    )
    text: str = Field("text", description="Column of prompts.")
    prompts: int = Field(64, ge=16, description="Maximum number of prompts, drawn at random; at least 16.")
    new_tokens: int = Field(24, ge=1, description="Tokens of the tuned network's answer to each prompt.")
    spectra: bool = Field(True, description="Singular values of the change of every matrix.")
    weights_only: bool = Field(False, description="Compare weights alone, and load no network.")
    top: int = Field(10, ge=1, description="Number of singular values in the top-k energy.")
    device: str | None = Field(None, description="Device; cuda if available, else cpu.")
    dtype: Dtype = Field("float32", description="Precision in which networks run: float32, bfloat16 or float16.")

    def files(self) -> list[Path]:
        """The user's prompts."""
        return [Path(self.data).expanduser()] if self.data else []
