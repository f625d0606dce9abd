"""report.html: an audit as one page that opens from disk, loads nothing, and runs nothing that a dataset holds."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from trl_attribution.audit.info import AuditInfo
from trl_attribution.errors import DataError
from trl_attribution.pairs.rows import RowSource
from trl_attribution.probes import Probe
from trl_attribution.report import facts, teaches
from trl_attribution.report import latents as lensing
from trl_attribution.report import prediction as predicting
from trl_attribution.report import scan as wording
from trl_attribution.report.answer import answer_of
from trl_attribution.report.clusters import cluster_facts, discovery_data, register_command, suggested_name
from trl_attribution.report.discovery import NO_WORDS, cluster_title, discovery_facts
from trl_attribution.report.findings import Findings, read_findings
from trl_attribution.report.page_data import PageTexts, ReportConfig, page_data, page_texts, text_chunks
from trl_attribution.report.texts import ListedPairs, visible
from trl_attribution.scoring import SourceRow
from trl_attribution.utils.atomic import atomic_path
from trl_attribution.utils.kinds import ExampleKind
from trl_attribution.utils.text import printable
from trl_attribution.utils.version import __version__

if TYPE_CHECKING:
    from datasets import Dataset

_VENDOR = ("vendor/d3.min.js", "vendor/plot.umd.min.js", "vendor/diff.min.js")
_OWN = (
    "core.js",
    "rows.js",
    "decisions.js",
    "browser.js",
    "detail.js",
    "review.js",
    "bulk.js",
    "charts.js",
    "discovery.js",
    "start.js",
)
_SOURCES = 200
_NO_DATASET = (
    "The dataset was not at hand when this page was made, so only ids, rows and scores are shown. "
    "With it: trl-attribution report AUDIT --dataset DATA."
)
# Plot puts this style into every chart; the policy has to know it.
_PLOT_STYLE = """:where(.plot-d6a7b5) {
  --plot-background: white;
  display: block;
  height: auto;
  height: intrinsic;
  max-width: 100%;
}
:where(.plot-d6a7b5 text),
:where(.plot-d6a7b5 tspan) {
  white-space: pre;
}"""


@dataclass(frozen=True)
class Served:
    """The review server that a page belongs to."""

    reviewer: str
    file: str
    """Where it writes decisions, for people."""


@dataclass(frozen=True)
class Report:
    """A report that was written."""

    path: Path
    listed: int
    """Pairs in its list."""
    texts: int
    """Those of them that have their texts in the page."""
    kind: ExampleKind
    """What they are called."""


def write_report(
    folder: str | Path,
    dataset: str | Path | Dataset | Sequence[Mapping[str, Any]] | RowSource | ListedPairs | None = None,
    *,
    probes: Sequence[Probe] = (),
    output: str | Path | None = None,
    config: ReportConfig | None = None,
    discovery: str | Path | None = None,
) -> Report:
    """Write ``report.html`` of the audit in ``folder``.

    Args:
        folder: a finished audit.
        dataset: the audited dataset, or its pairs, for the texts; by default the file that was audited if it is
            still there. A text is shown only where it has the id of the pair, so another dataset shows nothing wrong.
        probes: the audit's probes, for how they were built.
        output: where to write; by default ``report.html`` in ``folder``.
        config: how many texts to carry.
        discovery: where ``discover --output`` wrote to; by default ``discovery/`` in ``folder``, if it is there.

    Raises:
        StoreError, ManifestError, ProbeError: a file of the audit is missing, broken or of a newer version.
        SettingsError: a probe was given that the audit did not use.
        DataError: the dataset cannot be read.
        AttributionError: the page cannot be written; nothing is left half-written.
    """
    chosen = config or ReportConfig()
    found = read_findings(folder, probes, discovery)
    texts, notes = find_texts(found, dataset, chosen)
    target = Path(output) if output is not None else Path(folder) / "report.html"
    with atomic_path(target) as part:
        part.write_text(render_page(found, texts, notes), encoding="utf-8", newline="\n")
    return Report(target, len(found.listed), len(texts.texts) - texts.missing, found.kind)


def write_scan_report(folder: str | Path) -> Report | None:
    """Write ``report.html`` of the scan in ``folder``.

    None, and nothing is written, where the folder holds an audit with probes or of a training run: its page may have
    been made with more at hand.

    Raises:
        StoreError, AttributionError: as for :func:`write_report`.
    """
    info = AuditInfo.load(folder)
    return None if info.probes or info.training is not None else write_report(folder)


def find_texts(
    found: Findings,
    dataset: str | Path | Dataset | Sequence[Mapping[str, Any]] | RowSource | ListedPairs | None,
    config: ReportConfig,
) -> tuple[PageTexts, tuple[str, ...]]:
    """The texts of the listed pairs, and sentences on what is not there.

    Raises:
        DataError: a dataset was given and cannot be read.
    """
    listed = found.listed
    if not len(listed):
        return PageTexts((), False), ()
    given = dataset if dataset is not None else found.audited_file
    if given is None:
        return PageTexts((), False), (_NO_DATASET,)
    count = min(config.texts, len(listed))
    wanted = dict(zip(listed.pair_ids[:count], listed.rows[:count].tolist(), strict=True))
    try:
        own = found.info.own_responses(found.folder)
        pairs = given if isinstance(given, ListedPairs) else ListedPairs(given, found.reading, own)
        texts = page_texts(listed, pairs.at(wanted), config)
    except DataError:
        if dataset is not None:
            raise
        return PageTexts((), False), ("The file that was audited can no longer be read as such: texts are left out.",)
    notes = []
    if len(texts.texts) < len(listed):
        notes.append(
            f"The texts of the first {len(texts.texts):,} {found.kind.several} are in this page; the others are listed "
            "without. More: trl-attribution report AUDIT --texts N."
        )
    if texts.missing:
        notes.append(f"{found.kind.counted(texts.missing)} are no longer in the dataset: their texts are missing.")
    return texts, tuple(notes)


def render_page(found: Findings, texts: PageTexts, notes: Sequence[str] = (), served: Served | None = None) -> str:
    """The whole page.

    Args:
        found: the audit.
        texts: of its first listed pairs.
        notes: sentences on the texts that are not there.
        served: the review server, for a page that it serves.
    """
    review = {"mode": "browser"} if served is None else {"mode": "server", **vars(served)}
    scripts = [_asset(name) for name in (*_VENDOR, *_OWN)]
    style = _asset("style.css")
    info = found.info
    listed = {pair_id: place for place, pair_id in enumerate(found.listed.pair_ids)}
    data = page_data(found, texts, _missing(texts, found.kind), review)
    data["effects"] = [] if found.extras.scan is None else teaches.effects_data(found.extras.scan)
    data["discoveries"] = [discovery_data(one, listed, found.listed.flagged) for one in found.extras.discoveries]
    return page_template().render(
        found=found,
        answer=answer_of(found),
        dataset_name=printable(info.dataset.name, 200),
        model_name=printable(info.model.name, 200),
        sections=_sections(found),
        tiles=facts.tiles(found),
        text_notes=notes,
        most_sources=_SOURCES,
        has_layers=any(len(one.layers) > 1 for one in found.probes),
        cosines=facts.cosines(found),
        validation=found.extras.validation,
        about=facts.about(found),
        version=__version__,
        served=served is not None,
        licenses=_asset("vendor/LICENSES.txt"),
        policy=_policy(scripts, [style, _PLOT_STYLE], served is not None),
        style=Markup(style),
        scripts=[Markup(script) for script in scripts],
        data=_json(data),
        chunks=[_json(chunk) for chunk in text_chunks(texts)],
    )


@cache
def page_template() -> Template:
    """The page, compiled once per process: that takes longer than all else that is done for a page."""
    environment = Environment(
        loader=PackageLoader("trl_attribution.report", "html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {
        "shown": printable,
        "visible": lambda text, limit: visible(text, limit)[0],
        "enrichment": SourceRow.enrichment_text,
    }
    told = (facts.probe_facts, cluster_facts, cluster_title, discovery_facts, register_command, suggested_name)
    environment.globals |= {"no_words": NO_WORDS, "teaches": teaches, "wording": wording, "predicting": predicting}
    environment.globals |= {"lensing": lensing}
    environment.globals |= {one.__name__: one for one in told}
    return environment.get_template("page.html.j2")


def _policy(scripts: Sequence[str], styles: Sequence[str], served: bool) -> str:
    """Nothing is loaded, and nothing runs but the scripts whose digests are here."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {' '.join(_digest(script) for script in scripts)}",
            f"style-src {' '.join(_digest(style) for style in styles)}",
            "connect-src 'self'" if served else "connect-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )


def _digest(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return files("trl_attribution.report").joinpath("html", name).read_text(encoding="utf-8")


def _json(value: Any) -> Markup:
    """JSON that cannot end the element it stands in."""
    return htmlsafe_json_dumps(value, dumps=partial(json.dumps, ensure_ascii=False, allow_nan=False))


def _missing(texts: PageTexts, kind: ExampleKind) -> str:
    if not texts.texts:
        return f"The dataset was not at hand when this page was made: the {kind.one} is known by its id only."
    where = f"only the first {kind.several} carry theirs (see above the list)"
    return f"The text of this {kind.one} is not in the page: {where}."


def _sections(found: Findings) -> list[tuple[str, str]]:
    scored, extras = found.rule is not None, found.extras
    known = [
        ("teaches", "What it teaches", extras.scan is not None and not scored),
        ("sources", "Sources", scored),
        ("scores", "Scores", scored),
        ("witness", "Second witness", bool(found.witness)),
        ("pairs", found.kind.several.capitalize(), scored),
        ("layers", "Layers", any(len(one.layers) > 1 for one in found.probes)),
        ("change", "Training", bool(extras.behaviors or extras.drift)),
        ("probes", "Probes", bool(found.info.probes)),
        ("teaches", "What it teaches", extras.scan is not None and scored),
        ("discovery", "Discovery", bool(extras.discoveries)),
        ("validation", "Validation", extras.validation is not None),
        ("cost", "Cost", True),
    ]
    return [(name, title) for name, title, there in known if there]
