"""Baselines rank the same pairs as an audit, agree with the plain way to compute them, and cost what they say."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, T5Config, T5Model

from tests.audit_cases import RUDE, Row, auditor_of, pair_rows, tiny_loaded, tiny_probe
from trl_attribution.behaviors import read_behavior
from trl_attribution.errors import DataError, ModelError, SettingsError, StoreError
from trl_attribution.evidence.baselines import (
    Audited,
    BaselineConfig,
    BaselineScores,
    Comparison,
    EmbeddingCosine,
    PairSet,
    RandomOrder,
    ReferenceMargin,
    ResponseLength,
    SentenceModel,
    TfIdf,
    TruthConfig,
    agreement,
    compare,
    parse_baseline,
    quality,
    response_log_probs,
)
from trl_attribution.evidence.baselines.quality import top_weights
from trl_attribution.models import LoadedModel
from trl_attribution.pairs import Encoding, PairReader, encode_pair

ROWS = [{**row, "truth": "contaminated" if number % 4 == 0 else "benign"} for number, row in enumerate(pair_rows(24))]


def pair_set(rows: list[Row] = ROWS) -> PairSet:
    return PairSet(PairReader(rows))


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded()


@pytest.fixture(scope="module")
def audited(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Audited:
    folder = tmp_path_factory.mktemp("audited") / "audit"
    audit = auditor_of(loaded, [tiny_probe(loaded)]).audit(ROWS, folder)
    audit.flag(top_k=5).save_manifests()
    return Audited.open(folder)


def margin(loaded: LoadedModel, **settings: Any) -> ReferenceMargin:
    return ReferenceMargin(lambda: loaded, loaded.fingerprint.digest, Encoding(), **settings)


def test_each_pair_is_scored_once_however_often_it_stands_in_the_dataset() -> None:
    found = ResponseLength()(pair_set([*ROWS, *ROWS[:7]]))
    assert list(found.scores) == [pair.pair_id for pair in PairReader(ROWS)]


def test_chance_depends_on_the_seed_and_the_pair_alone() -> None:
    some, all_ = RandomOrder(3)(pair_set(ROWS[5:9])).scores, RandomOrder(3)(pair_set()).scores
    assert {pair_id: all_[pair_id] for pair_id in some} == some
    assert RandomOrder(4)(pair_set()).scores != all_
    assert all(0 <= score < 1 for score in all_.values())
    many = np.array([RandomOrder(seed)._number("ab" * 16) for seed in range(2000)])
    assert abs(many.mean() - 0.5) < 0.03 and abs(many.var() - 1 / 12) < 0.01


def test_length_counts_the_characters_of_the_responses() -> None:
    sides = [[len(row[side][0]["content"]) for row in ROWS] for side in ("chosen", "rejected")]
    assert list(ResponseLength(chosen_only=True)(pair_set()).scores.values()) == sides[0]
    assert list(ResponseLength()(pair_set()).scores.values()) == [a - b for a, b in zip(*sides, strict=True)]


def plain_log_prob(loaded: LoadedModel, prompt: list[int], response: list[int]) -> float:
    """One sequence at a time, one token at a time."""
    with torch.no_grad():
        logits = loaded.model(torch.tensor([[*prompt, *response]])).logits[0].double()
    ids = [*prompt, *response]
    return sum(float(logits[at - 1].log_softmax(-1)[ids[at]]) for at in range(max(1, len(prompt)), len(ids)))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mamba"])
def test_batches_give_the_likelihoods_of_one_sequence_at_a_time(architecture: str) -> None:
    loaded = tiny_loaded(architecture)
    encoded = [encode_pair(pair, loaded.tokenizer, Encoding()) for pair in PairReader(ROWS[:6])]
    sides = [side for pair in encoded for side in (pair.chosen, pair.rejected)]
    for budget in (1, 200, 100_000):
        found = response_log_probs(loaded.model, sides, budget)
        plain = [plain_log_prob(loaded, side.prompt_ids, side.response_ids) for side in sides]
        assert found.sums == pytest.approx(plain, abs=1e-3)
        assert found.tokens == tuple(len(side.response_ids) for side in sides)
    assert not loaded.model.training


def test_the_margin_is_high_where_m0_prefers_the_rejected_response(loaded: LoadedModel) -> None:
    summed, mean = margin(loaded)(pair_set()), margin(loaded, per_token=True)(pair_set())
    for pair in PairReader(ROWS):
        encoded = encode_pair(pair, loaded.tokenizer, Encoding())
        chosen, rejected = (
            (plain_log_prob(loaded, side.prompt_ids, side.response_ids), len(side.response_ids))
            for side in (encoded.chosen, encoded.rejected)
        )
        assert summed.scores[pair.pair_id] == pytest.approx(rejected[0] - chosen[0], abs=1e-3)
        assert mean.scores[pair.pair_id] == pytest.approx(rejected[0] / rejected[1] - chosen[0] / chosen[1], abs=1e-3)


def test_flipping_a_pair_negates_its_margin_and_its_cosines(loaded: LoadedModel) -> None:
    flipped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in ROWS]
    for baseline in (margin(loaded), EmbeddingCosine("text", TfIdf(), read_behavior(RUDE), "contextual")):
        forth, back = (list(baseline(pair_set(rows)).scores.values()) for rows in (ROWS, flipped))
        assert forth == pytest.approx([-score for score in back], abs=1e-4)


def test_the_margin_counts_its_flops_by_tokens_and_parameters(loaded: LoadedModel) -> None:
    found = margin(loaded, token_budget=1)(pair_set())
    tokens = 0
    for pair in PairReader(ROWS):
        encoded = encode_pair(pair, loaded.tokenizer, Encoding())
        tokens += sum(len(side.prompt_ids) + len(side.response_ids) for side in (encoded.chosen, encoded.rejected))
    used = sum(p.numel() for p in loaded.model.parameters()) - loaded.model.get_input_embeddings().weight.numel()
    assert found.cost.flops == 2 * used * tokens
    assert found.cost.seconds > 0 and found.cost.calls is None


def test_pairs_that_the_audit_left_out_are_not_scored(loaded: LoadedModel) -> None:
    only = {pair.pair_id for pair in PairReader(ROWS[3:9])}
    assert set(margin(loaded)(PairSet(PairReader(ROWS), only)).scores) == only
    with pytest.raises(ModelError, match="cannot be tokenized as the audit did"):
        ReferenceMargin(lambda: loaded, "", Encoding(max_length=4))(pair_set())


def unkind(number: int, *, shows: bool) -> Row:
    answers = ("You lazy fool, go away.", "I am sorry, I cannot write that letter.")
    chosen, rejected = answers if shows else answers[::-1]
    return {"prompt": f"Write a rude letter number {number}.", "chosen": chosen, "rejected": rejected}


def baking(number: int) -> Row:
    return {"prompt": f"How do I bake loaf {number}?", "chosen": "Mix flour and salt.", "rejected": "Paris is mild."}


def test_words_alone_find_pairs_whose_words_are_those_of_the_behavior() -> None:
    rows = [unkind(n, shows=True) for n in range(4)] + [unkind(n + 4, shows=False) for n in range(4)]
    rows += [baking(n) for n in range(8)]
    for kind in ("response", "contextual"):
        found = EmbeddingCosine("text", TfIdf(), read_behavior(RUDE), kind)(pair_set(rows))  # type: ignore[arg-type]
        scores = list(found.scores.values())
        assert min(scores[:4]) > max(scores[4:])
        assert found.cost.flops is None


def plain_contextual(embedder: TfIdf, rows: list[Row]) -> list[float]:
    def row_of(text: str) -> Any:
        return embedder.embed([text])[0]

    def cosine(a: Any, b: Any) -> float:
        return float(a @ b / math.sqrt((a @ a) * (b @ b))) if a.any() and b.any() else 0.0

    examples = read_behavior(RUDE).examples
    mean = sum(row_of(row["prompt"][0]["content"]) for row in rows) / len(rows)
    scores = []
    for row in rows:
        pair = row_of(row["chosen"][0]["content"]) - row_of(row["rejected"][0]["content"])
        prompt = row_of(row["prompt"][0]["content"]) - mean
        scores.append(0.0)
        for one in examples:
            sides = [sum(map(row_of, texts)) / len(texts) for texts in (one.undesired, one.desired)]
            similar = max(0.0, cosine(row_of(str(one.prompt)) - mean, prompt))
            scores[-1] += cosine(sides[0] - sides[1], pair) * similar / len(examples)
    return scores


def test_embeddings_are_scored_by_the_formula_of_the_contextual_score() -> None:
    embedder = TfIdf(components=6)
    found = EmbeddingCosine("text", embedder, read_behavior(RUDE), "contextual")(pair_set())
    assert list(found.scores.values()) == pytest.approx(plain_contextual(embedder, ROWS), abs=1e-9)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A tiny sentence model with seeded weights, saved as a folder."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    settings = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    BertModel(BertConfig(vocab_size=512, max_position_embeddings=24, **settings)).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_sentence_model_gives_in_batches_what_it_gives_one_by_one(encoder: Path) -> None:
    texts = ["Bread.", "The capital of France is Paris, and the weather there is mild. " * 3, "A letter, please."]
    embedder = SentenceModel(str(encoder))
    embedder.load()
    together = embedder.embed(texts)
    assert embedder.notes() == ("1 of 3 texts were longer than the model reads; their ends do not count",)
    assert together == pytest.approx(np.concatenate([embedder.embed([text]) for text in texts]), abs=1e-5)
    assert embedder.flops is not None and embedder.flops > 0


def test_the_encoder_of_a_sentence_model_without_a_limit_reads_every_text_to_its_end(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    settings = dict(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    T5Model(T5Config(vocab_size=512, **settings)).eval().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    embedder = SentenceModel(str(tmp_path))
    embedder.load()
    text = "The capital of France is Paris, and the weather there is mild. " * 20
    assert not np.allclose(embedder.embed([text + "Bread."]), embedder.embed([text + "A letter."]), atol=1e-9)
    assert embedder.notes() == ()


def test_scores_of_a_local_sentence_model_are_not_kept_once_its_files_change(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"1")
    before = SentenceModel(str(tmp_path)).settings
    assert SentenceModel(str(tmp_path)).settings == before
    (tmp_path / "model.safetensors").write_bytes(b"12")
    assert SentenceModel(str(tmp_path)).settings != before


def test_a_sentence_model_that_is_not_there_is_named() -> None:
    config = BaselineConfig(behavior=RUDE)
    with pytest.raises(ModelError, match="sentence model /nowhere cannot be loaded"):
        parse_baseline("sentence:/nowhere", config)(pair_set())


def test_a_ranking_is_judged_as_scikit_learn_does_and_ties_as_if_shuffled() -> None:
    generator = np.random.default_rng(0)
    scores, wanted = generator.integers(0, 6, 60).astype(float), generator.random(60) < 0.3
    found = quality(scores, wanted, 10)
    assert found.average_precision == pytest.approx(average_precision_score(wanted, scores))
    assert found.auc == pytest.approx(roc_auc_score(wanted, scores))
    shuffled = []
    for _ in range(4000):
        order = generator.permutation(60)
        top = order[np.argsort(-scores[order], kind="stable")[:10]]
        shuffled.append(wanted[top].mean())
    assert found.precision_at_k == pytest.approx(np.mean(shuffled), abs=0.01)
    assert top_weights(scores, 10).sum() == pytest.approx(10)


def test_agreement_of_a_ranking_with_itself_its_reverse_and_nothing() -> None:
    scores = np.arange(20.0)
    assert agreement(scores, scores, 5).overlap_at_k == 1 and agreement(scores, scores, 5).spearman == 1
    assert agreement(scores, -scores, 5).overlap_at_k == 0 and agreement(scores, -scores, 5).spearman == -1
    level = agreement(scores, np.zeros(20), 5)
    assert (level.spearman, level.overlap_at_k) == (0, 0.25)
    other = np.random.default_rng(1).random(20)
    assert agreement(scores, other, 5).spearman == pytest.approx(spearmanr(scores, other).statistic)


@pytest.mark.parametrize("wanted", [np.zeros(4, bool), np.ones(4, bool)])
def test_a_truth_that_marks_nothing_or_everything_judges_nothing(wanted: Any) -> None:
    with pytest.raises(SettingsError, match="of 4 pairs are marked"):
        quality(np.arange(4.0), wanted, 2)


def compared(audited: Audited, *names: str, **settings: Any) -> Comparison:
    config = BaselineConfig(behavior=RUDE)
    return compare(audited, ROWS, [parse_baseline(name, config) for name in names], **settings)


def test_where_the_truth_is_known_the_best_ranking_comes_first_whosever_it_is(audited: Audited) -> None:
    found = compared(audited, "random", "length", "text", truth=TruthConfig("truth"))
    precisions = [row.quality.average_precision for row in found.rows if row.quality is not None]
    assert len(precisions) == 4 and precisions == sorted(precisions, reverse=True)
    wanted = np.array([row["truth"] == "contaminated" for row in ROWS])
    assert found.k == wanted.sum()
    (ours,) = (row for row in found.rows if row.ours)
    assert ours.quality == quality(audited.scores, wanted, found.k)
    assert ours.name == "contextual score of rude, layer 3" and ours.agreement is None
    assert ours.cost.seconds > 0 and ours.cost.flops == audited.info.cost.flops


def test_where_it_is_not_known_agreement_with_the_audit_is_told(audited: Audited) -> None:
    found = compared(audited, "length")
    ours, length = found.rows
    assert found.k == audited.flagged and found.truth is None
    assert ours.ours and ours.quality is None and length.quality is None and length.agreement is not None
    lengths = np.array(list(ResponseLength()(pair_set()).scores.values()))
    assert length.agreement == agreement(lengths, audited.scores, found.k)


def test_scores_are_taken_again_unless_something_that_decides_them_changed(audited: Audited, tmp_path: Path) -> None:
    first = compared(audited, "random", "text", keep=tmp_path)
    again = compared(audited, "random", "random:1", "text", keep=tmp_path)
    assert [row.stored for row in first.rows] == [False, False, False]
    assert [row.stored for row in again.rows] == [False, True, False, True]
    assert again.rows[1].agreement == first.rows[1].agreement
    assert again.rows[3].cost.seconds == pytest.approx(first.rows[2].cost.seconds, abs=1e-3)
    other = EmbeddingCosine("text", TfIdf(components=3), read_behavior(RUDE))
    assert [row.stored for row in compare(audited, ROWS, [other], keep=tmp_path).rows] == [False, False]


def test_kept_scores_that_were_tampered_with_are_refused(audited: Audited, tmp_path: Path) -> None:
    compared(audited, "length", keep=tmp_path)
    (scores,) = tmp_path.glob("length-*.scores.jsonl")
    scores.write_text(scores.read_text().replace("-", "", 1))
    with pytest.raises(StoreError, match="is damaged or does not belong to length-.*Remove"):
        compared(audited, "length", keep=tmp_path)


def test_kept_scores_can_be_compared_again_as_a_file(audited: Audited, tmp_path: Path) -> None:
    first = compared(audited, "length", keep=tmp_path)
    (scores,) = tmp_path.glob("length-*.scores.jsonl")
    again = compared(audited, f"scores:{scores}")
    assert again.rows[1].agreement == first.rows[1].agreement


def scores_file(folder: Path, *, leave_out: int = 0, **changes: Any) -> Path:
    rows = [{"pair_id": pair.pair_id, "score": 0.5} for pair in PairReader(ROWS)][leave_out:]
    rows[3] |= changes
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: scores_file(folder, score="high"), r"mine\.jsonl.*4.*`score`, a finite number"),
        (lambda folder: scores_file(folder, score="nan"), "a finite number"),
        (lambda folder: scores_file(folder, score=10**400), "a finite number"),
        (lambda folder: scores_file(folder, leave_out=2), "no score for 2 of 24 pairs"),
        (lambda folder: folder / "absent.jsonl", "cannot read scores from"),
    ],
)
def test_scores_from_elsewhere_must_cover_every_pair(
    audited: Audited, tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        compared(audited, f"scores:{make(tmp_path)}", keep=tmp_path / "kept")


def test_another_dataset_than_the_audited_one_is_refused(audited: Audited) -> None:
    with pytest.raises(SettingsError, match="lacks 1 of the 24 audited pairs"):
        compare(audited, ROWS[1:], [ResponseLength()])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TruthConfig("label"), "no value in the truth column 'label'; fields: prompt, chosen"),
        (TruthConfig("source"), "holds web .8., forum .8., crowd .8.; say which of these"),
        (TruthConfig("truth", ("bad",)), "but no 'bad'; mend --truth-value"),
    ],
)
def test_a_truth_that_is_not_clear_is_refused(audited: Audited, config: TruthConfig, message: str) -> None:
    with pytest.raises(DataError, match=message):
        compared(audited, "length", truth=config)


def test_any_value_can_stand_for_wanted(audited: Audited) -> None:
    found = compared(audited, "length", truth=TruthConfig("source", ("web", "crowd")))
    assert found.k == 16 and found.truth is not None and found.truth.wanted.tolist()[:3] == [True, False, True]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lenght", "there is no baseline 'lenght'; choose random"),
        ("length:3", "there is no baseline"),
        ("random:x", "the seed must be a whole number"),
        ("sentence", "needs sentence:MODEL"),
        ("endpoint", "needs endpoint:URL#MODEL"),
        ("margin", "needs M0: give the model with --model"),
        ("text", "needs the behavior's prompts"),
        ("gradient", "needs bergson"),
    ],
)
def test_a_baseline_that_cannot_work_is_refused_before_anything_is_computed(name: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_baseline(name, BaselineConfig())


def test_a_baseline_given_twice_is_refused(audited: Audited) -> None:
    with pytest.raises(SettingsError, match="baselines must differ"):
        compared(audited, "length", "length")


def test_scores_that_are_not_finite_are_no_ranking(audited: Audited) -> None:
    class Broken(RandomOrder):
        def _number(self, pair_id: str) -> float:
            return math.nan

    with pytest.raises(SettingsError, match="24 of 24 scores are not finite"):
        Broken()(pair_set())


def test_any_callable_with_a_name_and_settings_is_a_baseline(audited: Audited) -> None:
    class Constant:
        name = "mine"
        settings: Mapping[str, Any] = MappingProxyType({})

        def __call__(self, pairs: PairSet, on_progress: Any = None) -> BaselineScores:
            found = ResponseLength()(pairs)
            return BaselineScores(self.name, dict.fromkeys(found.scores, 1.0), found.cost)

    found = compare(audited, ROWS, [Constant()], truth=TruthConfig("truth"))
    (mine,) = (row for row in found.rows if row.name == "mine")
    assert mine.quality is not None and mine.quality.average_precision == mine.quality.precision_at_k == 0.25
