"""AttributionTracker audits a training loop of one's own: the same vectors, and nothing lost without a word."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.training import LAYERS, Rows, chat_rows, least_cosine, offline, probe_on, text_rows
from trl_attribution import DataAuditor, Manifest, VectorStore
from trl_attribution.callbacks import AttributionTracker
from trl_attribution.callbacks.capture import CaptureError
from trl_attribution.callbacks.reference_pass import loop_reference
from trl_attribution.errors import SettingsError
from trl_attribution.pairs import EncodedPair, Encoding, PairReader, Reading, encode_pairs

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
Side = tuple[Tensor, Tensor, Tensor]
"""Token ids, attention mask and completion mask [B, T]."""


class Loop:
    """A DPO loop as people write it: a policy, a frozen reference, batches of four pairs, padded to the right."""

    def __init__(self, model_folder: Path, rows: Rows, encoding: Encoding | None = None, adapter: Any = None) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(model_folder)
        self.policy = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
        if adapter is not None:
            self.policy = get_peft_model(self.policy, adapter)
        self.reference = self.policy if adapter is not None else _frozen(model_folder)
        pairs = list(PairReader(rows, Reading(format="trl")))
        encoded = encode_pairs(pairs, self.tokenizer, encoding or Encoding(None))
        self.pairs = [pair for pair in encoded if isinstance(pair, EncodedPair)]
        self.optimizer = torch.optim.SGD(self.policy.parameters(), lr=0.1)

    def batches(self) -> Iterator[tuple[Side, Side]]:
        for start in range(0, len(self.pairs), 4):
            batch = self.pairs[start : start + 4]
            yield _padded([pair.chosen for pair in batch]), _padded([pair.rejected for pair in batch])

    def step(self, tracker: AttributionTracker | None, batch: tuple[Side, Side], separately: bool = False) -> None:
        """One step; the reference is run over all sequences at once, or over the two halves by themselves."""
        sides: list[tuple[Any, Side]] = [("both", _concatenated(*batch))]
        if separately:
            sides = [("chosen", batch[0]), ("rejected", batch[1])]
        expected = []
        for side, tokens in sides:
            watched = nullcontext() if tracker is None else tracker.batch(*tokens, side=side)
            with watched, torch.no_grad():
                expected += logps(self.reference_forward(tokens), tokens).tolist()
        whole = _concatenated(*batch)
        gained = logps(self.policy(input_ids=whole[0], attention_mask=whole[1]).logits, whole) - torch.tensor(expected)
        chosen, rejected = gained.chunk(2)
        torch.nn.functional.softplus(rejected - chosen).mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def reference_forward(self, tokens: Side) -> Tensor:
        if self.reference is not self.policy:
            return self._logits(tokens)
        with self.policy.disable_adapter():
            return self._logits(tokens)

    def _logits(self, tokens: Side) -> Tensor:
        logits: Tensor = self.reference(input_ids=tokens[0], attention_mask=tokens[1]).logits
        return logits

    def tracker(self, rows: Rows, folder: Path, **settings: Any) -> AttributionTracker:
        chosen: dict[str, Any] = dict(layers=LAYERS, vector_dtype="float32", output_dir=folder / "audit")
        return AttributionTracker(self.reference, self.tokenizer, rows, **{**chosen, **settings})

    def run(self, tracker: AttributionTracker, **how: Any) -> None:
        with tracker:
            for batch in self.batches():
                self.step(tracker, batch, **how)


def _frozen(model_folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    return model.requires_grad_(False)


def _padded(responses: Any) -> Side:
    width = max(len(one.prompt_ids) + len(one.response_ids) for one in responses)
    shape = (len(responses), width)
    ids, attention, completion = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
    for row, one in enumerate(responses):
        prompt, length = len(one.prompt_ids), len(one.prompt_ids) + len(one.response_ids)
        ids[row, :length] = torch.tensor(one.prompt_ids + one.response_ids)
        attention[row, :length] = 1
        completion[row, prompt:length] = 1
    return ids, attention, completion


def _concatenated(chosen: Side, rejected: Side) -> Side:
    width = max(chosen[0].shape[1], rejected[0].shape[1])
    first, second, third = (
        torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])
        for parts in zip(chosen, rejected, strict=True)
    )
    return first, second, third


def logps(logits: Tensor, tokens: Side) -> Tensor:
    """Log-probability [R] of each response."""
    taken = logits[:, :-1].log_softmax(-1).gather(2, tokens[0][:, 1:, None])[..., 0]
    return (taken * tokens[2][:, 1:]).sum(1)


@pytest.mark.parametrize("separately", [False, True], ids=["concatenated", "halves"])
@pytest.mark.parametrize("adapter", [None, LORA], ids=["reference model", "disabled adapter"])
@pytest.mark.parametrize("rows", [text_rows(23), chat_rows(23)], ids=["text", "chat"])
def test_vectors_of_a_loop_equal_those_of_the_offline_audit(
    rows: Rows, adapter: Any, separately: bool, model_folder: Path, tmp_path: Path
) -> None:
    loop = Loop(model_folder, rows, adapter=adapter)
    tracker = loop.tracker(rows, tmp_path)
    loop.run(tracker, separately=separately)
    expected = offline(model_folder, tmp_path, rows, max_length=None)
    assert tracker.finished is not None
    found = tracker.finished.audit
    assert found.info.model.digest == expected.info.model.digest
    assert found.info.vectors.path == ("reference model" if adapter is None else "disabled adapter")
    assert least_cosine(found.store, expected.store) >= 0.99999
    assert tracker.finished.counts.to_json() == {"rows": 23, "captured": 23, "repeats": 0, "unaudited": 0}


def test_truncated_pairs_are_known_again(model_folder: Path, tmp_path: Path) -> None:
    rows, encoding = text_rows(), Encoding(48)
    loop = Loop(model_folder, rows, encoding)
    tracker = loop.tracker(rows, tmp_path, max_length=48)
    loop.run(tracker)
    expected = offline(model_folder, tmp_path, rows, max_length=48)
    assert tracker.finished is not None
    assert expected.info.dataset.truncated_pairs > 0
    assert least_cosine(tracker.finished.audit.store, expected.store) >= 0.99999


def test_a_loop_may_write_its_batches_into_the_same_memory(model_folder: Path, tmp_path: Path) -> None:
    rows = text_rows(8)
    loop = Loop(model_folder, rows)
    tracker = loop.tracker(rows, tmp_path)
    whole = [_concatenated(*batch) for batch in loop.batches()]
    width = max(tokens[0].shape[1] for tokens in whole)
    buffers = [torch.zeros(8, width, dtype=torch.long) for _ in range(3)]
    with tracker:
        for tokens in whole:
            for buffer, part in zip(buffers, tokens, strict=True):
                buffer.zero_()[:, : part.shape[1]] = part
            with tracker.batch(*buffers), torch.no_grad():
                loop.reference(input_ids=buffers[0], attention_mask=buffers[1])
    assert tracker.finished is not None
    assert least_cosine(tracker.finished.audit.store, offline(model_folder, tmp_path, rows, max_length=None).store) >= (
        0.99999
    )


def test_mixed_precision_is_noted_with_the_vectors(model_folder: Path, tmp_path: Path, fresh_accelerate: None) -> None:
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    rows = text_rows()
    loop = Loop(model_folder, rows)
    loop.reference = accelerator.prepare_model(loop.reference, evaluation_mode=True)
    tracker = loop.tracker(rows, tmp_path)
    loop.run(tracker)
    assert tracker.finished is not None
    assert tracker.finished.audit.store.settings.compute_dtype == "bfloat16"
    expected = offline(model_folder, tmp_path, rows, "bfloat16", max_length=None)
    assert 0.99 <= least_cosine(tracker.finished.audit.store, expected.store) < 0.999999


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Accelerate's state is one for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_scores_manifests_and_metrics_are_those_of_the_offline_audit(model_folder: Path, tmp_path: Path) -> None:
    rows, probe = text_rows(), probe_on(model_folder)
    loop = Loop(model_folder, rows)
    tracker = loop.tracker(rows, tmp_path, probes=[probe], layers=None, top_k=5, flag_at=0.5, score="response")
    windows = []
    with tracker:
        for number, batch in enumerate(loop.batches()):
            loop.step(tracker, batch)
            if number % 3 == 2:
                windows.append(tracker.metrics())
    expected = DataAuditor(
        str(model_folder), probes=[probe], dtype="float32", vector_dtype="float32", score="response"
    ).audit(rows, tmp_path / "offline")
    assert tracker.finished is not None and tracker.finished.audit.scores is not None and expected.scores is not None
    (column,) = expected.scores.columns
    scores = expected.scores.of(column)
    assert tracker.finished.audit.scores.of(column) == pytest.approx(scores, abs=1e-5)
    assert len(Manifest.load(tmp_path / "audit" / "manifest.flip.jsonl").decisions) == 5
    for window, part in zip(windows, (scores[:12], scores[12:]), strict=True):
        assert window["attribution/numbers/mean"] == pytest.approx(part.mean(), abs=1e-5)
        assert window["attribution/numbers/max"] == pytest.approx(part.max(), abs=1e-5)
        assert window["attribution/flagged_fraction"] == pytest.approx((part >= 0.5).mean())


def test_a_window_without_pairs_has_no_metrics(model_folder: Path, tmp_path: Path) -> None:
    loop = Loop(model_folder, text_rows(4))
    with loop.tracker(text_rows(4), tmp_path, probes=[probe_on(model_folder)], layers=None) as tracker:
        assert tracker.metrics() == {}
        loop.step(tracker, next(loop.batches()))
        assert set(tracker.metrics()) == {"attribution/numbers/mean", "attribution/numbers/max"}
        assert tracker.metrics() == {}


def test_what_was_read_before_an_exception_is_kept_and_the_hooks_are_off(model_folder: Path, tmp_path: Path) -> None:
    rows = text_rows()
    loop = Loop(model_folder, rows)
    tracker = loop.tracker(rows, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        _interrupted(loop, tracker, after=2)
    assert tracker.finished is None
    assert _hooks(loop.reference) == 0
    assert len(VectorStore.open(tmp_path / "audit" / "parts" / "00000").pair_ids) == 8
    again = loop.tracker(rows, tmp_path)
    loop.run(again)
    assert again.finished is not None
    assert again.finished.counts.repeats == 8
    assert least_cosine(again.finished.audit.store, offline(model_folder, tmp_path, rows, max_length=None).store) >= (
        0.99999
    )


def _interrupted(loop: Loop, tracker: AttributionTracker, after: int) -> None:
    with tracker:
        for number, batch in enumerate(loop.batches()):
            if number == after:
                raise KeyboardInterrupt
            loop.step(tracker, batch)


def test_an_exception_inside_the_reference_forward_stays_the_one_raised(model_folder: Path, tmp_path: Path) -> None:
    rows = text_rows(8)
    loop = Loop(model_folder, rows)
    tracker = loop.tracker(rows, tmp_path)
    with pytest.raises(IndexError):
        _fails_in_the_second_forward(loop, tracker)
    assert len(VectorStore.open(tmp_path / "audit" / "parts" / "00000").pair_ids) == 4


def _fails_in_the_second_forward(loop: Loop, tracker: AttributionTracker) -> None:
    with tracker:
        for number, batch in enumerate(loop.batches()):
            ids, *masks = _concatenated(*batch)
            ids += 10_000 * number  # far beyond the vocabulary, from the second batch on
            with tracker.batch(ids, *masks):
                loop.reference(input_ids=ids)


def test_saving_brings_all_pairs_so_far_to_disk(model_folder: Path, tmp_path: Path) -> None:
    rows = text_rows(8)
    loop = Loop(model_folder, rows)
    with loop.tracker(rows, tmp_path) as tracker:
        loop.step(tracker, next(loop.batches()))
        tracker.save()
        assert len(VectorStore.open(tmp_path / "audit" / "parts" / "00000").pair_ids) == 4


def test_forwards_outside_of_a_batch_are_not_read(model_folder: Path, tmp_path: Path) -> None:
    rows = text_rows(8)
    loop = Loop(model_folder, rows)
    tracker = loop.tracker(rows, tmp_path)
    with tracker:
        for batch in loop.batches():
            loop.step(tracker, batch)
            loop.reference_forward(_concatenated(*batch))
    assert tracker.finished is not None and tracker.finished.counts.rows == 8
    assert _hooks(loop.reference) == 0


def test_the_loop_itself_is_not_changed(model_folder: Path, tmp_path: Path) -> None:
    rows = text_rows(8)
    plain, audited = Loop(model_folder, rows), Loop(model_folder, rows)
    for batch in plain.batches():
        plain.step(None, batch)
    audited.run(audited.tracker(rows, tmp_path))
    for mine, theirs in zip(plain.policy.parameters(), audited.policy.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def _hooks(model: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


Wrong = Callable[[Loop, AttributionTracker, Side], None]


def _no_forward(_loop: Loop, tracker: AttributionTracker, whole: Side) -> None:
    with tracker.batch(*whole):
        pass


def _two_forwards(loop: Loop, tracker: AttributionTracker, whole: Side) -> None:
    with tracker.batch(*whole):
        loop.reference(input_ids=whole[0])
        loop.reference(input_ids=whole[0])


def _other_tokens(loop: Loop, tracker: AttributionTracker, whole: Side) -> None:
    with tracker.batch(*whole):
        loop.reference(input_ids=whole[0].flip(0))


def _odd(_loop: Loop, tracker: AttributionTracker, whole: Side) -> None:
    with tracker.batch(*(part[:3] for part in whole)):
        pass


def _unlike_masks(_loop: Loop, tracker: AttributionTracker, whole: Side) -> None:
    with tracker.batch(whole[0], whole[1], whole[2][:, 1:]):
        pass


def _half_twice(loop: Loop, tracker: AttributionTracker, whole: Side) -> None:
    for _ in range(2):
        with tracker.batch(*whole, side="chosen"):
            loop.reference(input_ids=whole[0])


def _half_alone(loop: Loop, tracker: AttributionTracker, whole: Side) -> None:
    with tracker.batch(*whole, side="chosen"):
        loop.reference(input_ids=whole[0])


def _unlike_halves(loop: Loop, tracker: AttributionTracker, whole: Side) -> None:
    _half_alone(loop, tracker, whole)
    with tracker.batch(*(part[:2] for part in whole), side="rejected"):
        loop.reference(input_ids=whole[0][:2])


def _unknown_pairs(loop: Loop, tracker: AttributionTracker, whole: Side) -> None:
    ids = whole[0] + 1
    with tracker.batch(ids, *whole[1:]):
        loop.reference(input_ids=ids)
    tracker.save()


WRONG: dict[str, tuple[Wrong, str]] = {
    "no forward": (_no_forward, "0 forwards"),
    "two forwards": (_two_forwards, "2 forwards"),
    "other tokens": (_other_tokens, "other tokens than the batch"),
    "odd": (_odd, "side='chosen'"),
    "unlike masks": (_unlike_masks, "unlike shapes"),
    "a half twice": (_half_twice, "no other half yet"),
    "a half alone": (_half_alone, "it would be lost"),
    "unlike halves": (_unlike_halves, "8 chosen sequences and 2 rejected"),
    "unknown pairs": (_unknown_pairs, "not in the dataset"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_loop_that_would_lose_or_mix_up_pairs_is_stopped(mistake: str, model_folder: Path, tmp_path: Path) -> None:
    wrong, message = WRONG[mistake]
    loop = Loop(model_folder, text_rows(8))
    with pytest.raises(CaptureError, match=message), loop.tracker(text_rows(8), tmp_path) as tracker:
        wrong(loop, tracker, _concatenated(*next(loop.batches())))
    assert _hooks(loop.reference) == 0


def test_an_adapter_that_is_left_on_in_the_reference_forward_is_noticed(model_folder: Path, tmp_path: Path) -> None:
    loop = Loop(model_folder, text_rows(8), adapter=LORA)
    whole = _concatenated(*next(loop.batches()))
    with (
        pytest.raises(CaptureError, match="disable_adapter"),
        loop.tracker(text_rows(8), tmp_path) as tracker,
        tracker.batch(*whole),
    ):
        loop.policy(input_ids=whole[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"on_flag": "stop"}, "flagged_fraction"),
        ({"weights": "weight"}, "so is its loss"),
        ({"behaviors": "behaviors.jsonl"}, "policy=model"),
        ({"flags": 3}, "unknown setting flags"),
        ({"truncation_mode": "both"}, "truncation_mode"),
    ],
)
def test_settings_that_a_loop_cannot_follow_are_refused_at_once(
    settings: dict[str, Any], message: str, model_folder: Path, tmp_path: Path
) -> None:
    loop = Loop(model_folder, text_rows(4))
    with pytest.raises(SettingsError, match=message):
        loop.tracker(text_rows(4), tmp_path, **settings)
    assert not (tmp_path / "audit").exists()


@pytest.mark.parametrize("adapter", [None, LORA], ids=["reference model", "disabled adapter"])
def test_what_the_loop_changed_is_measured_where_the_policy_is_given(
    adapter: Any, model_folder: Path, tmp_path: Path
) -> None:
    rows = text_rows(8)
    (tmp_path / "behaviors.jsonl").write_text('{"prompt": "Tell me about number 3."}\n')
    loop = Loop(model_folder, rows, adapter=adapter)
    tracker = loop.tracker(
        rows,
        tmp_path,
        policy=loop.policy,
        behaviors=tmp_path / "behaviors.jsonl",
        judge=lambda _prompt, response: bool(response),
        samples=2,
        max_new_tokens=4,
    )
    loop.run(tracker)
    assert tracker.finished is not None
    (change,) = tracker.finished.findings.changes
    assert (change.before.share, change.after.judged) == (1.0, 2)
    drifts = {drift.layer: drift.norm for drift in tracker.finished.findings.drifts}
    assert list(drifts) == [1, 2, 3, 4]
    assert all(norm > 0 for norm in drifts.values())


def test_the_policy_is_no_reference_model(model_folder: Path, tmp_path: Path) -> None:
    loop = Loop(model_folder, text_rows(4))
    loop.reference = loop.policy
    with pytest.raises(SettingsError, match="it is the policy itself"):
        loop.tracker(text_rows(4), tmp_path, policy=loop.policy)


def test_learned_prompts_are_refused(model_folder: Path, tmp_path: Path) -> None:
    adapter = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    loop = Loop(model_folder, text_rows(4), adapter=adapter)
    with pytest.raises(SettingsError, match="learned prompts"):
        loop.tracker(text_rows(4), tmp_path)


def test_a_tracker_that_is_not_running_says_so(model_folder: Path, tmp_path: Path) -> None:
    loop = Loop(model_folder, text_rows(4))
    tracker = loop.tracker(text_rows(4), tmp_path)
    for use in (tracker.metrics, tracker.save, lambda: loop.step(tracker, next(loop.batches()))):
        with pytest.raises(SettingsError, match="with tracker:"):
            use()


def test_layers_that_the_model_lacks_are_refused_before_a_hook_is_set(model_folder: Path, tmp_path: Path) -> None:
    loop = Loop(model_folder, text_rows(4))
    with pytest.raises(Exception, match="layer"), loop.tracker(text_rows(4), tmp_path, layers=[99]):
        pass
    assert _hooks(loop.reference) == 0


def test_a_wrapper_does_not_hide_whether_there_is_an_adapter(make_model: Any) -> None:
    from peft import LoraConfig, get_peft_model

    class Wrapper(torch.nn.Module):
        """As DDP and engines are: the model is their ``module``."""

        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

    adapted = get_peft_model(make_model("llama"), LoraConfig(target_modules=["q_proj"]))
    found = loop_reference(Wrapper(adapted), None)
    assert found.source == "disabled adapter"
    assert not found.is_training_pass()
    with adapted.disable_adapter():
        assert found.is_training_pass()
