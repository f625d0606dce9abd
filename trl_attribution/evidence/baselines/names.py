"""The baseline that a name asks for: what can be said on the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_attribution.behaviors import EndpointConfig, EndpointJudge, Examples, read_behavior
from trl_attribution.errors import SettingsError
from trl_attribution.evidence.baselines.baseline import RankingBaseline
from trl_attribution.evidence.baselines.embeddings import EmbeddingCosine, Kind, SentenceModel, TfIdf
from trl_attribution.evidence.baselines.endpoint import EndpointRanking
from trl_attribution.evidence.baselines.foreign import ScoresFile
from trl_attribution.evidence.baselines.gradients import GradientConfig, GradientCosine
from trl_attribution.evidence.baselines.latents import LatentCosine
from trl_attribution.evidence.baselines.margin import ReferenceMargin
from trl_attribution.evidence.baselines.surface import RandomOrder, ResponseLength
from trl_attribution.lenses.config import SaeConfig
from trl_attribution.pairs import Encoding
from trl_attribution.utils.text import printable, whole_number

if TYPE_CHECKING:
    from trl_attribution.models import LoadedModel

NAMES = (
    "random[:SEED], length, length-chosen, margin, margin-per-token, text, text-contextual, sentence:MODEL, "
    "sentence-contextual:MODEL, sae, gradient, endpoint:URL#MODEL[#QUESTION] or scores:FILE"
)


@dataclass(frozen=True)
class BaselineConfig:
    """What baselines need besides the pairs; only those that need a thing ask for it.

    Raises:
        SettingsError: the token budget is not positive.
    """

    m0: Callable[[], LoadedModel] | None = field(default=None, repr=False)
    """Loads M0, once."""
    model_digest: str = ""
    """Of M0's fingerprint."""
    encoding: Encoding = field(default_factory=Encoding)
    """Truncation, as the audit's."""
    behavior: str | Path | Sequence[Mapping[str, Any]] | None = None
    """Prompts with undesired and desired responses."""
    token_budget: int | None = None
    """Tokens in one forward pass; None chooses by device."""
    sae: SaeConfig | None = None
    """The sparse autoencoder, and what it has to fit."""
    bergson: str | None = None
    """The interpreter of an environment that has bergson."""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    dtype: str = "auto"
    """That M0 was asked for in; decides scores, so it is stored with them."""
    device: str = "auto"
    """Of sentence models."""
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.token_budget is not None and self.token_budget < 1:
            raise SettingsError(f"token_budget: {self.token_budget} is not positive; leave it out for the default")


def parse_baseline(name: str, config: BaselineConfig) -> RankingBaseline:
    """The baseline that ``name`` asks for; nothing is loaded or called yet.

    Raises:
        SettingsError: there is no such baseline, or what it needs was not given.
        ProbeError: the behavior file cannot be read, or the endpoint's address is none.
    """
    kind, _, rest = name.partition(":")
    makers: dict[str, Callable[[], RankingBaseline]] = {
        "random": lambda: RandomOrder(_seed(rest)),
        "length": ResponseLength,
        "length-chosen": lambda: ResponseLength(chosen_only=True),
        "margin": lambda: _margin(config, per_token=False),
        "margin-per-token": lambda: _margin(config, per_token=True),
        "text": lambda: _embedding(name, "response", "", config),
        "text-contextual": lambda: _embedding(name, "contextual", "", config),
        "sentence": lambda: _embedding(name, "response", rest, config),
        "sentence-contextual": lambda: _embedding(name, "contextual", rest, config),
        "sae": lambda: _latents(config),
        "gradient": lambda: _gradient(config),
        "endpoint": lambda: _endpoint(name, config),
        "scores": lambda: ScoresFile(Path(rest)),
    }
    takes = {
        "random": "",
        "sentence": "MODEL",
        "sentence-contextual": "MODEL",
        "endpoint": "URL#MODEL",
        "scores": "FILE",
    }
    if kind not in makers or (rest and kind not in takes):
        raise SettingsError(f"there is no baseline {printable(name, 80)!r}; choose {NAMES}")
    if takes.get(kind) and not rest:
        raise SettingsError(f"the baseline {kind} needs {kind}:{takes[kind]}")
    return makers[kind]()


def _seed(text: str) -> int:
    seed = whole_number(text or "0")
    if seed is None:
        raise SettingsError(f"baseline random:{printable(text, 40)}: the seed must be a whole number, such as random:1")
    return seed


def _m0(config: BaselineConfig, name: str) -> Callable[[], LoadedModel]:
    if config.m0 is None:
        raise SettingsError(f"the baseline {name} needs M0: give the model with --model")
    return config.m0


def _behavior(config: BaselineConfig, name: str) -> Examples:
    if config.behavior is None:
        raise SettingsError(
            f"the baseline {name} needs the behavior's prompts with undesired and desired responses: "
            "give --behavior FILE"
        )
    return read_behavior(config.behavior)


def _margin(config: BaselineConfig, *, per_token: bool) -> RankingBaseline:
    name = "margin-per-token" if per_token else "margin"
    return ReferenceMargin(
        _m0(config, name), config.model_digest, config.encoding, per_token, config.token_budget, config.dtype
    )


def _embedding(name: str, kind: Kind, model: str, config: BaselineConfig) -> RankingBaseline:
    embedder = SentenceModel(model, config.device, config.trust_remote_code) if model else TfIdf()
    return EmbeddingCosine(name, embedder, _behavior(config, name), kind)


def _latents(config: BaselineConfig) -> RankingBaseline:
    if config.sae is None:
        raise SettingsError("the baseline sae needs a sparse autoencoder of M0: give one with --sae")
    return LatentCosine(
        _m0(config, "sae"),
        config.model_digest,
        config.encoding,
        _behavior(config, "sae"),
        config.sae,
        config.token_budget,
        config.dtype,
    )


def _gradient(config: BaselineConfig) -> RankingBaseline:
    if config.bergson is None:
        raise SettingsError(
            "the baseline gradient needs bergson, which has an environment of its own: give its interpreter with "
            "--bergson PYTHON; see docs/how-to/compare-with-baselines.md for how to make one"
        )
    settings = GradientConfig(config.bergson)
    if config.token_budget is not None:
        settings = replace(settings, token_budget=config.token_budget)
    return GradientCosine(
        _m0(config, "gradient"),
        config.model_digest,
        config.encoding,
        _behavior(config, "gradient"),
        settings,
        trust_remote_code=config.trust_remote_code,
    )


def _endpoint(name: str, config: BaselineConfig) -> RankingBaseline:
    return EndpointRanking(EndpointJudge.from_rule(name, config.endpoint))
