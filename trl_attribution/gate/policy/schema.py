"""What a policy may say: every setting of the gate, with its type, its range and what it is for."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from dataclasses import dataclass
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

from trl_attribution.audit.config import AuditConfig
from trl_attribution.gate.policy.rules import Part, Rules
from trl_attribution.gate.policy.taken import Taken, one_of
from trl_attribution.pairs.encoding import TRUNCATION_MODES, Encoding
from trl_attribution.pairs.formats import BAD_ROW_RULES, FORMATS, Reading
from trl_attribution.pairs.own_responses import OwnConfig
from trl_attribution.scoring.kinds import AskedKind
from trl_attribution.utils.dtypes import DTYPES

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


@dataclass(frozen=True)
class Computing(AuditConfig):
    """How vectors are computed that no store holds."""

    max_pairs: int | None = None
    """Refuse (exit code 2) to compute more pairs than this: a job that has lost its cache should say so, not run for
    days."""


_READING = Taken(
    "ReadingOptions",
    {
        "prompt_column": str,
        "chosen_column": Name,
        "rejected_column": Name,
        "source_column": Name,
        "format": one_of(*FORMATS),
        "columns": str,
        "split": str | None,
        "on_bad_row": one_of(*BAD_ROW_RULES),
    },
)
_ENCODING = Taken("EncodingOptions", {"max_length": PositiveInt | None, "truncation_mode": one_of(*TRUNCATION_MODES)})
_OWN = Taken(
    "OwnOptions",
    {"file": Name | None, "n": PositiveInt, "max_new_tokens": PositiveInt, "seed": NonNegativeInt},
)
_COMPUTING = Taken(
    "ComputeOptions",
    {
        "dtype": one_of("auto", *reversed(DTYPES)),
        "device": Name,
        "vector_dtype": one_of(*DTYPES),
        "token_budget": PositiveInt | None,
        "path": Literal["auto", "fused", "packed", "plain"],
        "blocks_path": Name | None,
        "max_pairs": PositiveInt | None,
    },
)


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
    score: AskedKind = "auto"
    """Kind of score; ``auto`` is one-sided for SFT samples, else controlled for probes with controls and contextual
    for others that know their prompts."""
    reading: Annotated[Reading, _READING] = Field(default_factory=Reading)
    """How the rows of the dataset become pairs."""
    encoding: Annotated[Encoding, _ENCODING] = Field(default_factory=Encoding)
    """Truncation."""
    own_responses: Annotated[OwnConfig, _OWN] = Field(default_factory=OwnConfig)
    """M0's own responses, the other side of KTO rows with one label and of SFT rows."""
    compute: Annotated[Computing, _COMPUTING] = Field(default_factory=Computing)
    """How missing vectors are computed."""
    cache: CacheOptions = Field(default_factory=CacheOptions)
    """Where computed vectors are kept; a folder, or folder and remote."""
    vectors: Name | None = None
    """Vectors made elsewhere: an audit's folder, or a store (``trl-attribution audit --vectors``). They are read, never
    written; pairs that it lacks are looked for in the cache, then computed."""
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
