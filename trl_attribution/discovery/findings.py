"""What a scan found, typed, and the file that keeps it: ``findings.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from trl_attribution.utils.json_file import JsonFile
from trl_attribution.utils.kinds import EXAMPLES, ExampleKind, Kind
from trl_attribution.utils.text import printable

FILE = "findings.json"
FOLDER = "findings"
"""Where the manifests lie."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class TypicalPair(_Part):
    """A pair that pushes the way a finding says; RAW text, cut."""

    pair_id: str
    row: int
    source: str
    score: float
    prompt: str = ""
    chosen: str = ""
    rejected: str = ""


class SourceCount(_Part):
    """How many of a finding's pairs push its way, of how many that come from one source."""

    source: str
    pushing: int
    pairs: int


class Finding(_Part):
    """One thing that the dataset teaches: a trait, where, how much, how sure."""

    trait: str
    says: str
    """In words: "refuses harmful requests"; RAW where the trait is the user's."""
    guessed: bool = False
    """Whether its place teaches something for certain, and the trait is only what fits best."""
    direction: Literal["towards", "away"]
    harmful: bool
    """Whether this is what a release has to be kept from."""
    everywhere: bool
    """False for an effect of one topic or source."""
    beside: bool = False
    """Whether places that the trait has other findings of are left out of it."""
    words: tuple[str, ...]
    """What the prompts of its pairs are about; RAW; empty where it is everywhere."""
    topic: int | None
    source: str | None
    """RAW; None where no single source is its place."""
    pairs: int
    """In its place, of those on which the trait can show."""
    pushing_low: int
    """About so many pairs push its way, beyond those that push the other way ..."""
    pushing_high: int
    """... to so many (95%)."""
    effect: float
    """Mean score over its standard deviation (d), signed."""
    effect_low: float
    effect_high: float
    """95%, by resampling pairs."""
    elsewhere: float | None
    """Effect size on the pairs outside of its place; None where it is everywhere."""
    shape_share: float
    """How much of the trait's scores the responses' length and format explain, 0 to 1."""
    z: float
    adjusted_p: float
    """Chance that anything at all in a dataset with random labels looks this strong."""
    sources: tuple[SourceCount, ...]
    typical: tuple[TypicalPair, ...]
    manifest: str = ""
    """Relative to the audit folder: the pairs that push its way, to be filtered."""


class TraitCheck(_Part):
    """Whether the reference model tells a trait."""

    trait: str
    examples: int
    sign: float
    specific: float | None
    tells: bool
    agreement: float | None = None
    """Rank correlation with what is counted on the text, where it is."""


class Unnamed(_Part):
    """A cluster of pairs that push alike, found without traits; see ``trl-attribution discover``."""

    cluster: str
    words: tuple[str, ...]
    lost_words: tuple[str, ...]
    prompt_words: tuple[str, ...]
    share: float
    pairs: int


class LatentFinding(_Part):
    """A latent of a sparse autoencoder that chosen responses raise over rejected ones, or lower, somewhere."""

    latent: int
    everywhere: bool
    """False for an effect of one topic."""
    beside: bool
    """Whether topics that the latent has other findings of are left out of it."""
    topic: int | None
    words: tuple[str, ...]
    """What the topic's prompts are about; RAW; empty where it is everywhere."""
    pairs: int
    raised: int
    """Pairs whose chosen response has more of it ..."""
    lowered: int
    """... and less."""
    difference: float
    """Mean over the pairs, chosen minus rejected, each a mean over the response's tokens."""
    difference_low: float
    difference_high: float
    """95%."""
    effect: float
    """Mean difference over its standard deviation (d), signed."""
    effect_low: float
    effect_high: float
    """95%, by resampling pairs."""
    z: float
    adjusted_p: float
    """Chance that any latent in any topic of a dataset with random labels looks this strong."""
    alike: str
    """The trait whose scores go along with it most; RAW where it is the user's; empty without traits."""
    likeness: float
    """How much, -1 to 1."""
    promotes: tuple[str, ...]
    """Tokens that it promotes through M0's LM head; RAW."""
    raised_by: tuple[tuple[str, str, str], ...]
    """Where it is highest in the text it was checked on: before, the token, after; RAW."""


class Latents(_Part):
    """What a sparse autoencoder says of the pairs."""

    sae: dict[str, Any]
    """What it is, and how well it reconstructs M0's tokens."""
    pairs: int
    """Read, drawn from those that were scanned."""
    tested: int
    """Latents that differ on enough of them to be looked at."""
    threshold: float
    """The |z| that had to be reached."""
    standing: int
    """Effects that reach it."""
    findings: tuple[LatentFinding, ...]
    """Of these, the largest that are certain."""


class TraitChange(_Part):
    """How far training moves a trait: predicted, and measured where both models' responses are at hand.

    Every number is in units of the trait's spread on M0: 1 is what two responses of the traits' examples differ by.
    """

    trait: str
    topic: int | None
    """None: over all topics."""
    words: tuple[str, ...]
    """What the topic's prompts are about; RAW."""
    pairs: int
    """On which the trait can show."""
    predicted: float
    """Mean over the pairs, chosen minus rejected; positive is towards the trait."""
    predicted_error: float
    """Its standard error."""
    prompts: int = 0
    """Held out, on which the trait can show."""
    measured: float | None = None
    """Mean over those prompts, M1's response minus M0's, both read by M0; None for too few prompts, or none."""
    measured_error: float | None = None


class Agreement(_Part):
    """How well predicted and measured changes agree, over so many of them."""

    number: int
    r2: float
    """Of the line of measured on predicted; slope and intercept are fitted."""
    slope: float
    rank: float
    """Spearman's correlation."""


class Prediction(_Part):
    """What training is predicted to change, and what it did change."""

    changes: tuple[TraitChange, ...]
    by_trait: Agreement | None = None
    """Over traits, all topics together."""
    by_topic: Agreement | None = None
    """Over topics and traits."""
    prompts: int = 0
    """Held-out prompts that were read."""
    left_out: dict[str, int] = {}
    """Reason -> prompts that were not."""
    unmeasured: int = 0
    """Changes for which there were too few prompts."""


class ScanResult(JsonFile):
    """All that one scan found; the content of ``findings.json``."""

    FORMAT: ClassVar[str] = "trl-attribution findings"
    VERSION: ClassVar[int] = 1
    ADVICE: ClassVar[str] = "Scan again."

    dataset: dict[str, Any]
    """``name``, ``fingerprint`` and ``pairs``."""
    model: dict[str, Any]
    """M0: ``name`` and ``digest``."""
    kind: Kind = "pair"
    """What the dataset's examples are; ``pairs`` below counts them, whatever they are."""
    settings: dict[str, Any]
    layer: int
    pairs: int
    """Scanned."""
    sampled: bool
    """Whether they are a part of the dataset."""
    topics: int
    tests: int
    """Places times traits that were tested."""
    threshold: float
    """The |z| that had to be reached."""
    findings: tuple[Finding, ...]
    """Harmful ones first, then the largest that is certain."""
    explained: int
    """Effects that are not told, since those above explain them."""
    traits: tuple[TraitCheck, ...]
    absent: tuple[str, ...] = ()
    """Traits that were looked for and do not stand out anywhere."""
    unnamed: tuple[Unnamed, ...]
    prediction: Prediction | None = None
    """None in files of releases that predicted nothing."""
    latents: Latents | None = None
    """None where no autoencoder was given."""
    notes: tuple[str, ...]
    seconds: dict[str, float]

    def __repr__(self) -> str:
        harmful = sum(one.harmful for one in self.findings)
        about = f"{self.examples.counted(self.pairs)} of {printable(self.dataset['name'], 80)}, layer {self.layer}"
        return f"ScanResult({about}: {len(self.findings)} findings, {harmful} of them harmful)"

    __str__ = __repr__  # pydantic's own is every number of it

    def _repr_html_(self) -> str:
        """Where which trait is pushed towards, for a notebook; dataset text is escaped."""
        from trl_attribution.audit.notebook import html_table, paragraphs

        rows = [
            (one.says, ", ".join(one.words), one.source or "", f"{one.pushing_low:,} to {one.pushing_high:,}")
            for one in self.findings
        ]
        columns = ("teaches", "where", "source", self.examples.several)
        return str(paragraphs([repr(self)]) + html_table(columns, rows))

    @property
    def examples(self) -> ExampleKind:
        """What its examples are called."""
        return EXAMPLES[self.kind]

    @property
    def untold(self) -> tuple[TraitCheck, ...]:
        """Traits that this model does not tell."""
        return tuple(one for one in self.traits if not one.tells)

    def save(self, folder: Path) -> Path:
        """Write ``findings.json`` into ``folder``, atomically; gives its path."""
        path = folder / FILE
        self.write(path)
        return path

    @classmethod
    def load(cls, folder: str | Path) -> ScanResult | None:
        """The findings in ``folder``; None where nothing was scanned.

        Raises:
            StoreError: the file is broken, foreign, or of a newer version.
        """
        return cls.read(Path(folder) / FILE)
