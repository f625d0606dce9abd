"""What a policy may say: every setting of the gate, with its type, its range and what it is for."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    NonNegativeInt,
    PositiveInt,
    WithJsonSchema,
    model_validator,
)

from trl_attribution.gate.policy.rules import Part, Rules

if TYPE_CHECKING:
    from pydantic_core import CoreSchema

POLICY_VERSION = 1

PairId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{12,64}$")]
Name = Annotated[str, Field(min_length=1)]


def _date(value: Any) -> Any:
    """Pydantic would take a number or a time for a date as well: refused."""
    if not isinstance(value, str) or not re.fullmatch(r"\d{4}-\d{2}-\d{2}", value):
        raise ValueError("should be a date, such as 2026-12-31")
    return datetime.date.fromisoformat(value)


Day = Annotated[datetime.date, BeforeValidator(_date), WithJsonSchema({"type": "string", "format": "date"})]


class ReadingOptions(Part):
    """How the columns of the dataset become pairs."""

    prompt_column: str = "prompt"
    """Column with the prompt; ``""`` where it is inside both responses."""
    chosen_column: Name = "chosen"
    """Column with the preferred response."""
    rejected_column: Name = "rejected"
    """Column with the other response."""
    source_column: Name = "source"
    """Column that says where a pair comes from."""
    format: Literal["auto", "trl", "anthropic"] = "auto"
    """``trl``, ``anthropic`` (raw transcripts), or ``auto`` by the first row."""
    split: str | None = None
    """Which split to read where there are several."""
    on_bad_row: Literal["error", "skip"] = "error"
    """``error``: a row that cannot be read ends the gate with exit code 2. ``skip`` leaves it out and counts it."""


class EncodingOptions(Part):
    """Truncation, with the names of DPOConfig."""

    max_length: PositiveInt | None = 1024
    """Most tokens of prompt and response together; ``null`` for no limit."""
    truncation_mode: Literal["keep_start", "keep_end"] = "keep_start"
    """Which end of a longer sequence stays."""


class ComputeOptions(Part):
    """How vectors are computed that no store holds."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What the model computes in."""
    device: Name = "auto"
    """A torch device; ``auto`` takes CUDA, then MPS, then CPU."""
    vector_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """How vectors are kept in the cache."""
    token_budget: PositiveInt | None = None
    """Tokens in one forward pass; chosen by device if left out."""
    path: Literal["auto", "packed", "plain"] = "auto"
    """How sequences are laid out; ``auto`` by a self-check."""
    blocks_path: Name | None = None
    """Where the decoder blocks live, if they are not found by structure."""
    max_pairs: PositiveInt | None = None
    """Refuse (exit code 2) to compute more pairs than this: a job that has lost its cache should say so, not run for
    days."""


class CacheOptions(Part):
    """Where computed vectors are kept between runs."""

    folder: Name = ".trl-attribution-cache"
    """A folder that the CI system keeps."""
    remote: Name | None = None
    """A place that jobs share, as an fsspec URL such as ``s3://bucket/gate`` or ``file:///mnt/gate``: read before,
    added to after."""
    push: bool = True
    """Whether new vectors are added to ``remote``; switch it off where a job may only read."""

    @model_validator(mode="before")
    @classmethod
    def _from_folder(cls, value: Any) -> Any:
        return {"folder": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The mapping, or the folder alone."""
        whole = handler.resolve_ref_schema(handler(core_schema))
        return {"anyOf": [{"type": "string", "minLength": 1}, whole]}


class AllowEntry(Part):
    """One pair that was looked at and accepted."""

    pair_id: PairId
    """Which pair."""
    reason: Annotated[str, Field(min_length=1)]
    """Why it is accepted."""
    expires: Day
    """The last day on which this holds."""


class Policy(Part):
    """A gate policy: what a dataset is judged with, and what it has to satisfy."""

    version: Literal[1]
    """Of this format: 1."""
    model: Name | None = None
    """M0, which the probes were made with: a Hub id, a folder or a GGUF file. It is loaded only where vectors are
    missing. Left out, all of them have to be in ``vectors`` or in the cache already."""
    probes: Name | None = None
    """A registry folder, or ``hf://owner/repo`` (``hf://owner/repo@revision/folder``)."""
    pins: dict[str, Fingerprint] = Field(default_factory=dict)
    """The fingerprint of each probe by name, 12 digits of it or more: another probe of that name is refused."""
    layers: Annotated[list[NonNegativeInt], Field(min_length=1)] | None = None
    """Layers to compute and keep; those that the probes are scored at if left out."""
    score: Literal["auto", "contextual", "response"] = "auto"
    """Kind of score; ``auto`` is contextual for probes that know their prompts."""
    reading: ReadingOptions = Field(default_factory=ReadingOptions)
    """How the rows of the dataset become pairs."""
    encoding: EncodingOptions = Field(default_factory=EncodingOptions)
    """Truncation."""
    compute: ComputeOptions = Field(default_factory=ComputeOptions)
    """How missing vectors are computed."""
    cache: CacheOptions = Field(default_factory=CacheOptions)
    """Where computed vectors are kept; a folder, or folder and remote."""
    vectors: Name | None = None
    """A vector store made elsewhere (``trl-attribution audit --vectors``); it is read, never written."""
    baseline: Name | None = None
    """What new pairs are compared with; ``trl-attribution gate baseline`` makes it."""
    max_findings: PositiveInt = 100
    """How many offending pairs of a rule are listed, worst first; manifests hold all of them."""
    rules: Rules
    """What the dataset has to satisfy."""
    allow: list[AllowEntry] = Field(default_factory=list)
    """Accepted violations."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.rules.probes and self.probes is None:
            raise ValueError("rules.probes needs probes: name a registry folder")
        if self.baseline is None:
            needing = [f"rules.probes.{name}.drift" for name, rules in self.rules.probes.items() if rules.drift]
            needing += ["rules.known_bad"] if self.rules.known_bad else []
            if needing:
                raise ValueError(f"{needing[0]} needs a baseline: make one with `gate baseline` and name it here")
        if self.probes is not None and self.probes.startswith("hf://"):
            free = sorted(self.rules.probes.keys() - self.pins.keys())
            if free:
                raise ValueError(
                    f"pins: probes from a Hub repo have to be pinned by fingerprint; these are not: {', '.join(free)}"
                )
        seen: set[str] = set()
        for entry in self.allow:
            if entry.pair_id in seen:
                raise ValueError(f"allow names pair {entry.pair_id} twice: leave one entry")
            seen.add(entry.pair_id)
        if self.layers is not None and len(set(self.layers)) < len(self.layers):
            raise ValueError("layers names a layer twice")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of all settings and rules; comments, order and layout of the file do not count."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def policy_schema() -> dict[str, Any]:
    """The JSON schema of a policy file, for editors."""
    schema: dict[str, Any] = _without_null(Policy.model_json_schema())
    length = schema["$defs"]["EncodingOptions"]["properties"]["max_length"]
    length |= {"type": ["integer", "null"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "trl-attribution gate policy"}


def _without_null(schema: Any) -> Any:
    """A key without a value is refused, though the model holds None where a key is left out."""
    if isinstance(schema, list):
        return [_without_null(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: _without_null(value) for key, value in schema.items() if not (key == "default" and value is None)}
    choices = [choice for choice in plain.get("anyOf", []) if choice != {"type": "null"}]
    if len(choices) == 1:
        del plain["anyOf"]
        return {**choices[0], **plain}
    return {**plain, "anyOf": choices} if choices else plain
