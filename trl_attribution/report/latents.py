"""What a sparse autoencoder says, as sentences and tables; text only ever enters made printable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trl_attribution.discovery.findings import LatentFinding, Latents
from trl_attribution.utils.kinds import PAIR, ExampleKind
from trl_attribution.utils.tables import table
from trl_attribution.utils.text import counted, printable

if TYPE_CHECKING:
    from trl_attribution.lenses.composition import Composition
    from trl_attribution.lenses.described import LatentWords
    from trl_attribution.lenses.reconstruction import CheckedSae

_TOKENS = 4


def latents_view(latents: Latents, shown: int, kind: ExampleKind = PAIR) -> RenderableType:
    """How well the autoencoder fits, what was looked at, and the latents that stand out most."""
    listed = latents_table(latents.findings[:shown], latents.standing, kind)
    return Group("", *map(Text, latent_lines(latents, kind)), listed)


def latent_lines(latents: Latents, kind: ExampleKind = PAIR) -> list[str]:
    """How well it fits, and what was looked at, printable."""
    says = printable(latents.sae["reconstruction"]["says"], 300)
    looked = (
        f"{kind.counted(latents.pairs)} read again; {counted(latents.tested, 'latent')} of "
        f"{latents.sae['latents']:,} differ on enough of them, {counted(latents.standing, 'effect')} beyond what "
        f"random labels show for any of these in any topic (|z| of {latents.threshold:.1f})."
    )
    return [f"Latents of {printable(latents.sae['sae'], 100)}: it {says}.", looked]


def latents_table(findings: Sequence[LatentFinding], standing: int, kind: ExampleKind = PAIR) -> Table:
    """A line a latent."""
    left = standing - len(findings)
    caption = latents_caption(kind) + (f"; and {counted(left, 'more effect')}" if left else "")
    return table("Latents that the data raises or lowers", latent_columns(kind), map(latent_row, findings), caption)


def latent_columns(kind: ExampleKind = PAIR) -> tuple[str, ...]:
    """Headings of what :func:`latent_row` has; those of numbers begin with ``>``."""
    examples = f">{kind.several} + / -"
    return (">latent", "where", examples, ">difference [95%]", ">d", "alike", "promotes", "is raised by")


def latents_caption(kind: ExampleKind = PAIR) -> str:
    """What the columns mean."""
    sides = f"{kind.raised} minus {kind.lowered}"
    return f"difference: {sides}, means over their tokens; alike: the trait that goes along with it"


def latent_row(one: LatentFinding) -> tuple[str, ...]:
    """Its numbers and what it is about, printable."""
    where = ", ".join(printable(word, 30) for word in one.words) or "no words of its own"
    if one.everywhere:
        where = "everywhere but narrower places" if one.beside else "everywhere"
    before, token, after = one.raised_by[0] if one.raised_by else ("", "", "")
    context = (before[-30:], token, after[:15])
    left, middle, right = (printable(part.replace("\n", " "), 60) for part in context)
    return (
        str(one.latent),
        where,
        f"{one.raised:,} / {one.lowered:,} of {one.pairs:,}",
        f"{one.difference:+.3g} [{one.difference_low:+.3g}, {one.difference_high:+.3g}]",
        f"{one.effect:+.2f}",
        f"{printable(one.alike, 40)} {one.likeness:+.2f}" if one.alike else "",
        " ".join(printable(text.strip(), 20) for text in one.promotes[:_TOKENS]),
        f"{left}[{middle}]{right}" if token else "",
    )


def composition_view(found: Composition, words: Sequence[LatentWords], checked: CheckedSae) -> RenderableType:
    """What a probe is made of, one latent a line."""
    rows = (
        (
            str(part.latent),
            f"{part.weight:+.3f}",
            f"{part.cosine:+.3f}",
            f"{part.explained:.0%}",
            one.shown_tokens,
            "\n".join(text.shown for text in one.raised_by[:2]) or "nothing in this text",
        )
        for part, one in zip(found.parts, words, strict=True)
    )
    caption = (
        f"{counted(len(found.parts), 'latent')} explain {found.explained:.0%} of the direction's squared length; as "
        f"many explain {found.by_chance:.0%} of a random direction. Below 0: the behavior lowers the latent."
    )
    columns = (">latent", ">weight", ">cosine", ">explained so far", "promotes", "is raised by")
    title = f"Latents that the probe is made of at layer {checked.sae.layer}"
    return Group(Text(f"The autoencoder {checked.reconstruction.sentence}."), table(title, columns, rows, caption))
