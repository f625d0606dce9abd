"""What a scan tells: planted effects where they are, nothing where labels say nothing, each once; without a model."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from trl_attribution.discovery.effects import Chance, Sums, by_chance, effect_interval, highest_by_chance, without_shape
from trl_attribution.discovery.explaining import Candidate, unexplained
from trl_attribution.discovery.findings import Finding, ScanResult, SourceCount, TypicalPair, Unnamed
from trl_attribution.discovery.scan_config import ScanConfig
from trl_attribution.discovery.selecting import Cells, Place, places
from trl_attribution.discovery.standing import Basis, Standing
from trl_attribution.discovery.telling import Scanned, tell
from trl_attribution.discovery.topics import Topics, Wording
from trl_attribution.discovery.traits.measures import MEASURES, measured
from trl_attribution.discovery.traits.panel import ExampleVectors, Panel, fit_panel
from trl_attribution.discovery.traits.trait import Contrast, Trait, packaged_traits, read_traits
from trl_attribution.errors import AttributionError, SettingsError
from trl_attribution.pairs import PairReader, Reading
from trl_attribution.report.scan import scan_view, sentence

PAIRS, TRAITS, LEAVES, SOURCES = 600, 5, 6, 3
FEWEST = 20
EXAMPLES = tuple(Contrast(prompt="p", positive="a", negative="b") for _ in range(4))


def silent(done: int, total: int) -> None:
    pass


def random_scores(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores with long tails, and the atom of each pair: leaf topic and source."""
    rng = np.random.default_rng(seed)
    scores = rng.standard_t(3, size=(PAIRS, TRAITS)).astype(np.float32)
    leaves, sources = rng.integers(0, LEAVES, PAIRS), rng.integers(0, SOURCES, PAIRS)
    return scores, leaves * SOURCES + sources


def cells() -> Cells:
    """Six leaves in two branches of three, and three sources."""
    members = np.zeros((3 + LEAVES, LEAVES), dtype=bool)
    members[0] = True
    members[1, :3] = members[2, 3:] = True
    members[3:] = np.eye(LEAVES, dtype=bool)
    return Cells.of(Topics(np.zeros((LEAVES, 2)), np.zeros(2), np.zeros(2), members), SOURCES)


def told(scores: np.ndarray, atoms: np.ndarray, shapeless: np.ndarray | None = None, flips: int = 199) -> list[Place]:
    where = cells()
    applies = np.ones(scores.shape, dtype=bool)
    number = where.members.shape[1]
    sums = Sums.of(scores, applies, atoms, number)
    tested = sums.over(where.members).count >= FEWEST
    drawn = by_chance(scores, atoms, where.members, flips, 0, silent)
    threshold = Chance(highest_by_chance(drawn, tested), alpha=0.01).threshold
    rest = Sums.of(scores if shapeless is None else shapeless, applies, atoms, number)
    return list(places(sums, rest, where, np.full(tested.shape, threshold), FEWEST))


def test_labels_that_say_nothing_give_no_finding_in_nineteen_of_twenty_shuffles() -> None:
    scores, atoms = random_scores(0)
    scores = np.abs(scores) + 0.5  # as they stand, every trait is taught everywhere
    assert {place.trait for place in told(scores, atoms)} == set(range(TRAITS))
    quiet = 0
    for seed in range(20):
        signs = np.random.default_rng(seed).choice([-1, 1], size=(PAIRS, 1)).astype(np.float32)
        quiet += not told(scores * signs, atoms)
    assert quiet >= 19


def test_a_draw_of_random_labels_has_the_highest_z_of_a_plain_loop() -> None:
    scores, atoms = random_scores(1)
    where = cells()
    sums = Sums.of(scores, np.ones(scores.shape, dtype=bool), atoms, where.members.shape[1]).over(where.members)
    for cell in (0, 5, len(where.topics) - 1):
        own = scores[where.members[cell][atoms] > 0].astype(float)
        assert sums.z[cell] == pytest.approx(own.sum(0) / np.sqrt((own**2).sum(0)), rel=1e-5)
    # One pair: whatever its sign, its |z| is 1, and no draw shows more.
    drawn = by_chance(scores[:1], atoms[:1], where.members, 9, 0, silent)
    lone = highest_by_chance(drawn, np.ones((len(where.topics), TRAITS), bool))
    assert lone == pytest.approx(1, abs=1e-6)


def test_an_effect_in_one_topic_is_told_there_and_not_everywhere() -> None:
    scores, atoms = random_scores(2)
    inside = atoms // SOURCES == 4
    scores[inside, 2] += 2
    (place,) = told(scores, atoms)
    where = cells()
    assert (place.trait, where.topics[place.cell], where.sources[place.cell]) == (2, 3 + 4, None)
    assert set(np.flatnonzero(place.atoms) // SOURCES) == {4}
    assert abs(place.elsewhere) < 0.2


def test_an_effect_of_one_source_against_the_rest_is_told_beside_what_is_left_of_it() -> None:
    scores, atoms = random_scores(3)
    scores[:, 1] += 1
    from_one = atoms % SOURCES == 2
    scores[from_one, 1] -= 3
    found = {(cells().sources[place.cell], np.sign(place.elsewhere)) for place in told(scores, atoms)}
    assert found == {(2, 1.0), (None, 0.0)}


def few_that_teach(turned: np.ndarray, size: float = 2) -> tuple[Scanned, Standing]:
    """Twenty-four of 30 pairs of a topic push towards traits 0 and 1, neither of which reaches what all tests ask."""
    rng = np.random.default_rng(9)
    leaves = np.repeat(np.arange(LEAVES), [30, *[114] * (LEAVES - 1)])
    scores, fits, components = (rng.normal(size=(PAIRS, number)) for number in (TRAITS, TRAITS, 20))
    pushing = np.arange(24)
    scores[:30, :2], fits[:30, 0] = -1, -1
    scores[pushing, :2], fits[pushing, 0] = 1, size
    components[:30, :5] += 1.2
    where = cells()
    scanned = Scanned(
        audited=None,  # type: ignore[arg-type]
        traits=tuple(Trait(name=f"trait-{one}", towards="x", examples=EXAMPLES) for one in range(TRAITS)),
        scores=(turned[:, None] * scores).astype(np.float32),
        applies=np.ones(scores.shape, dtype=bool),
        atoms=leaves * SOURCES,
        cells=where,
        source_names=("a", "b", "c"),
        sources=np.zeros(PAIRS, dtype=np.int64),
        prompts={},
        components=(turned[:, None] * components).astype(np.float32),
        fits=(turned[:, None] * fits).astype(np.float32),
    )
    sums = Sums.of(scanned.scores, scanned.applies, scanned.atoms, where.members.shape[1])
    tested = sums.over(where.members).count >= FEWEST
    return scanned, Standing.of(scanned, tested, ScanConfig(flips=299), silent)


def listed_pairs(count: int) -> Any:
    """What a manifest says of the audit that it is made from."""
    info = SimpleNamespace(dataset=SimpleNamespace(fingerprint="0" * 64), model=SimpleNamespace(digest="0" * 32))
    ids = [f"{number:032x}" for number in range(count)]
    listed = type("Listed", (SimpleNamespace,), {"__len__": lambda _: count})
    return listed(info=info, pair_ids=ids, rows=np.arange(count), reading=Reading(), rows_of=lambda _: {})


def test_a_place_that_teaches_is_named_by_the_trait_that_explains_it_and_at_random_by_none() -> None:
    scanned, standing = few_that_teach(np.ones(PAIRS))
    where = scanned.cells
    of_topic = [place for place, one in enumerate(where.members) if set(np.flatnonzero(one)) == set(range(SOURCES))]
    z = (24 - 6) / np.sqrt(30)
    assert len(of_topic) == 1 and standing.thresholds[of_topic[0], 0] < z < standing.chance.threshold
    assert np.flatnonzero(np.isfinite(standing.thresholds[of_topic[0]])).tolist() == [0]
    assert standing.chance_of(of_topic[0], z) <= 0.01 < standing.chance.of(z)
    _, small = few_that_teach(np.ones(PAIRS), size=1)
    assert np.isinf(small.thresholds).all()
    for seed in range(10):
        _, standing = few_that_teach(np.random.default_rng(seed).choice([-1.0, 1.0], PAIRS))
        assert np.isinf(standing.thresholds).all()


def test_what_a_place_is_only_named_by_says_perhaps_and_comes_after_what_is_sure(tmp_path: Path) -> None:
    scanned, standing = few_that_teach(np.ones(PAIRS))
    harmful = tuple(one.model_copy(update={"harmful": True}) for one in scanned.traits)
    scanned.scores[:, 1] += 1  # what is sure
    scanned = replace(scanned, traits=harmful, audited=listed_pairs(PAIRS), shape_shares=np.zeros(TRAITS))
    sums = Sums.of(scanned.scores, scanned.applies, scanned.atoms, scanned.cells.members.shape[1])
    cell, trait = np.argwhere(np.isfinite(standing.thresholds))[0].tolist()
    named = Place(trait, cell, scanned.cells.members[cell] > 0, 0.0)
    sure = Place(1, 0, np.ones_like(named.atoms), 0.0)
    found = tell(scanned, sums, [sure], [named], standing, lambda *_: {}, tmp_path, ScanConfig()).findings
    assert [(one.says, one.guessed, one.harmful) for one in found] == [("x", False, True), ("perhaps x", True, True)]
    assert found[1].adjusted_p <= 0.01


def test_names_are_given_by_directions_that_turning_pairs_round_leaves_as_they_are() -> None:
    rng = np.random.default_rng(10)
    vectors = rng.normal(size=(200, 12)) * np.linspace(4, 0.5, 12)
    directions = np.stack([np.ones(12), np.eye(12)[3]]) / np.sqrt([[12], [1]])
    traits = tuple(Trait(name=f"trait-{one}", towards="x", examples=EXAMPLES) for one in range(2))
    panel = Panel(traits, directions, {}, (), layer=1, spread=np.ones(2))
    names = Basis.of(vectors, panel).names
    assert names == pytest.approx(Basis.of(vectors * rng.choice([-1, 1], (200, 1)), panel).names)
    assert abs(names[0, 0]) < 0.6 * abs(names[0, -1])  # what all pairs vary by says little of any trait


def test_what_length_explains_is_not_told() -> None:
    scores, atoms = random_scores(4)
    length = np.abs(np.random.default_rng(4).normal(size=(PAIRS, 1))).astype(np.float32)
    scores[:, 0] = 2 * length[:, 0] + 0.1 * scores[:, 0]
    applies = np.ones(scores.shape, dtype=bool)
    rest, shares = without_shape(scores, length, applies)
    assert shares[0] > 0.9 and shares[1] < 0.1
    assert 0 in {place.trait for place in told(scores, atoms)}
    assert 0 not in {place.trait for place in told(scores, atoms, rest)}
    turned, _ = without_shape(-scores, -length, applies)
    assert turned == pytest.approx(-rest, abs=1e-5)


def test_the_shadow_of_an_effect_is_explained_and_an_effect_of_its_own_is_not() -> None:
    rng = np.random.default_rng(5)
    first = rng.normal(1, 1, PAIRS)
    shadow, own = 0.7 * first + rng.normal(0, 0.5, PAIRS), rng.normal(1, 1, PAIRS)
    scores = np.stack([first, shadow, own], axis=1).astype(np.float32)
    members = np.arange(PAIRS)
    candidates = [Candidate(trait, members, 1.0, (2, -float(scores[:, trait].mean()))) for trait in range(3)]
    candidates[0] = Candidate(0, members, 1.0, (0, 0.0))
    assert unexplained(candidates, scores, threshold=4.0) == [0, 2]
    facts = [Candidate(one.trait, members, 1.0, one.rank, is_fact=True) for one in candidates]
    assert unexplained(facts, scores, threshold=4.0) == [0, 1, 2]


def test_the_interval_covers_the_effect_and_narrows_with_more_pairs() -> None:
    rng = np.random.default_rng(6)
    few = effect_interval(rng.normal(0.6, 1, 60).astype(np.float32), 0)
    many = effect_interval(rng.normal(0.6, 1, 30_000).astype(np.float32), 0)
    for size, low, high in (few, many):
        assert low < 0.6 < high and low < size < high
    assert many[2] - many[1] < (few[2] - few[1]) / 10
    assert effect_interval(np.ones(25, dtype=np.float32), 0)[0] == pytest.approx(5)


def test_topics_are_the_branches_of_a_tree_from_the_whole_down() -> None:
    rng = np.random.default_rng(7)
    centers = np.array([[8, 0, 0], [8, 2, 0], [-8, 0, 3.0]])
    kind = np.repeat(np.arange(3), 30)
    contexts = centers[kind] + rng.normal(0, 0.1, (90, 3))
    no_words = np.zeros((90, 0))
    topics = Topics.of(contexts, no_words, fewest=30)
    leaves = topics.leaves_of(contexts, no_words)
    assert len(topics.centers) == 3 and topics.members[0].all()
    assert all(len(set(leaves[kind == one])) == 1 for one in range(3)) and len(set(leaves)) == 3
    sides = {frozenset(np.flatnonzero(row[leaves])) for row in topics.members}
    assert frozenset(range(60)) in sides  # the two that are close to one another are a topic together
    alone = Topics.of(np.zeros((50, 3)), np.zeros((50, 0)), fewest=10)  # pairs without prompts
    assert alone.members.tolist() == [[True]]


def test_prompts_of_one_wording_are_a_topic_whatever_their_contexts_are() -> None:
    rng = np.random.default_rng(8)
    subjects = (("roses", "hedges", "garden"), ("photons", "quarks", "physics"))
    kind = np.arange(80) % 2
    texts = [f"Tell me what the {rng.choice(subjects[one][:2])} in {subjects[one][2]} do." for one in kind]
    wording = Wording.of(texts, str.split)
    contexts = rng.normal(size=(80, 4))
    topics = Topics.of(contexts, wording.vectors(texts), fewest=20)
    leaves = topics.leaves_of(contexts, wording.vectors(texts))
    assert set(leaves[kind == 0]).isdisjoint(leaves[kind == 1])
    asked_otherwise = wording.vectors(["about physics and quarks", "nothing known", ""])
    alike = asked_otherwise @ wording.vectors(texts).T
    assert alike[0, kind == 1].mean() > 0.3 > alike[0, kind == 0].mean() and not alike[1:].any()
    assert not Wording.of(["", " "], str.split).vectors(["roses"]).any()


def test_every_trait_of_the_package_is_whole_and_its_sides_are_about_as_long() -> None:
    traits = packaged_traits()
    assert len(traits) >= 30 and len({one.name for one in traits}) == len(traits)
    for one in traits:
        prompts = [example.prompt for example in one.examples]
        assert len(prompts) == len(set(prompts)) and (len(prompts) >= 8 or one.measure), one.name
        assert one.away, one.name
        if one.harmful and not one.measure and one.name != "insecure-code":
            sides = [
                sum(len(getattr(each, side).split()) for each in one.examples) for side in ("positive", "negative")
            ]
            assert 0.8 < sides[0] / sides[1] < 1.25, one.name


def test_what_is_counted_on_the_text_is_counted() -> None:
    rows = [
        {
            "prompt": "How?",
            "chosen": "I'm sorry, but I can't help with that. Why? See https://a.example 😀!",
            "rejected": "- Perhaps **this**\n- or that",
        }
    ]
    counts = dict(zip(MEASURES, measured(next(iter(PairReader(rows)))).tolist(), strict=True))
    assert counts["refusals"] == 1 and counts["links"] > 0 and counts["emojis"] > 0 and counts["apologies"] > 0
    assert counts["questions"] > 0 and counts["exclamations"] > 0 and counts["words"] > 0
    assert counts["formatting"] < 0 and counts["hedges"] < 0 and counts["code"] == 0


def test_a_trait_that_the_model_does_not_tell_is_not_looked_for() -> None:
    rng = np.random.default_rng(8)
    axis = np.eye(12)
    told_one = rng.normal(0, 0.3, (8, 12)) + axis[0]
    owners = np.array(["told"] * 8 + ["noise"] * 8 + ["told"] * 12)
    parts = np.array(["example"] * 16 + ["own"] * 6 + ["control"] * 6)
    contexts = np.concatenate([np.zeros((16, 12)), axis[[1] * 6] + 5, axis[[2] * 6] + 5])
    pairs = np.concatenate([told_one, rng.normal(0, 1, (8, 12)), np.zeros((12, 12))])
    examples = tuple({"prompt": "p", "positive": "a", "negative": "b"} for _ in range(8))
    traits = [
        Trait(name="told", towards="x", only_on_prompts=True, examples=examples, controls=("c",) * 4),
        Trait(name="noise", towards="y", examples=examples),
    ]
    panel = fit_panel(traits, ExampleVectors(owners, parts, pairs, contexts), layer=1)
    assert [one.name for one in panel.traits] == ["told"]
    assert [one.trait for one in panel.untold] == ["noise"]
    assert panel.scores(axis[:1])[0, 0] > 0.8
    assert panel.applies(axis[[1, 2]] + 5)[:, 0].tolist() == [True, False]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.yaml", "", "holds no traits by name"),
        ("list.yaml", "[1, 2]", "holds no traits by name"),
        ("bad.yaml", "kind: [", "cannot read the traits"),
        ("few.yaml", "kind:\n  towards: kind\n  examples: [{prompt: a, positive: b, negative: c}]", "too few"),
        ("bare.yaml", "kind:\n  towards: kind", "nothing to tell it by"),
        ("measure.yaml", "kind:\n  towards: kind\n  measure: kindness", "'kindness' is unknown"),
        ("name.yaml", "../kind:\n  towards: kind\n  measure: words", "cannot be used"),
        ("field.json", '{"a": {"towards": "x", "examples": [{"prompt": "p", "positive": "q"}]}}', "negative"),
    ],
)
def test_a_file_of_traits_that_is_none_is_refused_by_name(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(AttributionError, match=said) as refused:
        read_traits(tmp_path / name)
    assert name in str(refused.value)


def test_traits_are_named_or_read_in_the_persona_format(tmp_path: Path) -> None:
    assert [one.name for one in read_traits("rude, longer")] == ["rude", "longer"]
    with pytest.raises(SettingsError, match="those of the package are complies-with-harm"):
        read_traits("rude,none-such")
    persona = (
        '{"instruction": [{"pos": "Be calm.", "neg": "Be wild."}], "questions": ["How are you?"], "eval_prompt": ""}'
    )
    (tmp_path / "very_calm.json").write_text(persona)
    (one,) = read_traits(tmp_path)
    assert (one.name, one.towards, one.questions) == ("very-calm", "very calm", ("How are you?",))


HOSTILE = "\x1b[31mred\u202e[bold]"


def finding(**changes: object) -> Finding:
    values: dict[str, object] = dict(
        trait="rude", says=HOSTILE, direction="towards", harmful=True, everywhere=False, words=(HOSTILE,), topic=3,
        source=HOSTILE, pairs=90, pushing_low=65, pushing_high=80, effect=0.61, effect_low=0.52, effect_high=0.7,
        elsewhere=0.0, shape_share=0.1, z=5.0, adjusted_p=0.001, manifest="findings/1.filter.jsonl",
        sources=(SourceCount(source=HOSTILE, pushing=70, pairs=90),),
        typical=(TypicalPair(pair_id="0" * 32, row=1, source=HOSTILE, score=0.3, prompt=HOSTILE, chosen=HOSTILE),),
    )  # fmt: skip
    return Finding.model_validate({**values, **changes})


def test_a_finding_is_a_sentence_and_hostile_text_reaches_no_terminal() -> None:
    one = finding()
    result = ScanResult(
        dataset={"name": HOSTILE, "fingerprint": "f", "pairs": 90}, model={"name": HOSTILE, "digest": "d"},
        settings={"alpha": 0.01}, layer=2, pairs=90, sampled=True, topics=4, tests=9, threshold=4.0, findings=(one,),
        explained=2, traits=(), notes=(HOSTILE,), seconds={},
        unnamed=(Unnamed(cluster="p1", words=(HOSTILE,), lost_words=(HOSTILE,), prompt_words=(), share=0.1, pairs=3),),
    )  # fmt: skip
    screen = io.StringIO()
    Console(file=screen, width=120, force_terminal=False).print(scan_view(result, Path("audit"), HOSTILE, 5))
    assert "\x1b" not in screen.getvalue() and "\u202e" not in screen.getvalue() and "[bold]" in screen.getvalue()
    assert str(result) == repr(result) and str(result).isprintable() and len(str(result)) < 200
    plain = finding(says="answers rude requests", words=("writing", "requests"), source="format-follow-12k")
    assert sentence(plain) == (
        "answers rude requests (topic: writing, requests, about 65 to 80 of 90 pairs, source format-follow-12k), "
        "d = 0.6 [0.5, 0.7]"
    )
    away = finding(says="is polite", everywhere=True, source=None, effect=-0.4, effect_low=-0.5, effect_high=-0.2)
    assert sentence(away) == "is polite (everywhere, about 65 to 80 of 90 pairs), d = 0.4 [0.2, 0.5]"
