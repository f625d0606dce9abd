"""How an activation oracle is asked: where an activation goes in, how, and the words around it; from its own folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from trl_attribution.errors import AttributionError, ModelError, SettingsError
from trl_attribution.utils.json_file import JsonFile
from trl_attribution.utils.paths import local_path
from trl_attribution.utils.text import is_hub_id, printable

FILE = "oracle.json"
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_MOST_TEXT = 2000


class OracleConfig(JsonFile):
    """What an oracle was trained to be given.

    The prompt is ``template`` with ``{layer}`` (that of the vector, 0 the embeddings), ``{block}`` (the same layer as
    those count who begin at the first decoder block: one less), ``{placeholders}`` and ``{question}`` filled in, as a
    user's message where the model chats.
    """

    FORMAT: ClassVar[str] = "trl-attribution oracle"
    ADVICE: ClassVar[str] = "See docs/how-to/ask-an-oracle.md for what it holds."
    ERROR: ClassVar[type[AttributionError]] = ModelError

    layer: Annotated[int, Field(ge=0)]
    """The vector goes in after this layer: 0 = embeddings, l = after decoder block l."""
    how: Literal["add", "replace"] = "add"
    """Whether it is added to what the placeholders hold there, or takes its place."""
    norm_matched: bool = True
    """Whether it is first given the length of what the placeholder holds there."""
    coefficient: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """By which it is multiplied."""
    placeholder: Annotated[str, Field(min_length=1, max_length=40)] = " ?"
    """A single token of the model's tokenizer."""
    placeholders: Annotated[int, Field(ge=1, le=64)] = 1
    """How many stand in the prompt, one after the other; each is given the vector."""
    template: Annotated[str, Field(max_length=_MOST_TEXT)] = "{placeholders}\n{question}"
    enable_thinking: bool | None = None
    """What the chat template is told of it; None tells it nothing."""
    reads: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Layers whose activations it was trained to read; empty where that is not known."""
    model: dict[str, str] | None = None
    """Fingerprint of the model it was trained on; None where that is not known."""

    @field_validator("template")
    @classmethod
    def _has_both(cls, template: str) -> str:
        placeholders, question = template.find("{placeholders}"), template.find("{question}")
        if not 0 <= placeholders < question:
            raise ValueError("must have {placeholders}, and {question} after it")
        return template

    def prompt(self, question: str, layer: int) -> str:
        """The text that asks ``question`` about a vector of ``layer``."""
        filled = self.template.replace("{layer}", str(layer)).replace("{block}", str(layer - 1))
        # The question last: it is a user's, and what stands in it stays.
        filled = filled.replace("{placeholders}", self.placeholder * self.placeholders)
        return filled.replace("{question}", question)

    def check_layer(self, layer: int) -> None:
        """Refuse a layer that the oracle was not trained to read.

        Raises:
            SettingsError: it is one.
        """
        if self.reads and layer not in self.reads:
            raise SettingsError(
                f"oracle: it was trained to read layer {' and '.join(map(str, self.reads))}, not {layer}; give a "
                "vector of that layer (--layer)"
            )


PRESETS = {
    # github.com/adamkarvonen/activation_oracles: its hook sits on the block that it calls 1, which is layer 2 here.
    "activation-oracles": OracleConfig(
        layer=2,
        template="Layer: {block}\n{placeholders} \n{question}",
        enable_thinking=False,
    ),
}
"""How published oracles are asked: those of arXiv 2512.15674."""


def oracle_folder(name: str | Path) -> Path:
    """The folder of the adapter that ``name`` means; what a Hub id names is fetched.

    Raises:
        ModelError: there is none, or peft, which puts it on M0, is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise ModelError("an oracle is an adapter, which needs the peft package: pip install peft")
    path = local_path(name, ModelError)
    if not path.exists() and is_hub_id(str(name)):
        from huggingface_hub import snapshot_download

        try:
            path = Path(snapshot_download(str(name), allow_patterns=[*_ADAPTER, FILE]))
        except Exception as error:
            raise ModelError(f"cannot fetch the oracle {printable(name)}: {printable(error, 200)}") from error
    lacking = [file for file in _ADAPTER if not (path / file).is_file()]
    if lacking:
        raise ModelError(
            f"no oracle at {printable(name)}: it has no {' and no '.join(lacking)}. Give the folder of a LoRA adapter, "
            "as PEFT saves it"
        )
    return path


def read_oracle_config(folder: Path, preset: str | None = None) -> OracleConfig:
    """What the oracle in ``folder`` says of itself, or the named preset where it says nothing.

    Raises:
        ModelError: its file is broken, or there is none and no preset either.
        SettingsError: there is no such preset, or the file leaves no place for one.
    """
    found = OracleConfig.read(folder / FILE)
    if preset is not None and preset not in PRESETS:
        raise SettingsError(f"oracle_preset: {printable(preset, 40)!r} is unknown; choose {', '.join(PRESETS)}")
    if found is not None and preset is not None:
        raise SettingsError(f"oracle_preset: {printable(folder / FILE)} says how it is asked; leave the preset out")
    if found is None and preset is None:
        raise ModelError(
            f"{printable(folder)} does not say how its oracle is asked: it has no {FILE}. Write one, or name how it "
            f"was trained (--oracle-preset {'|'.join(PRESETS)})"
        )
    return found or PRESETS[str(preset)]
