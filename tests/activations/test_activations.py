"""Activations equal the naive computation, whatever the architecture, packing, padding or order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException
from transformers import PreTrainedModel

from tests import naive
from tests.tiny import ARCHITECTURES, LAYERS
from trl_attribution.activations import ActivationConfig, ActivationEngine, GroupActivations, PromptGroup, attention
from trl_attribution.activations.fused import BLOCK, Visibility, fused_attention
from trl_attribution.activations.packing import pack
from trl_attribution.activations.passes import BatchActivations, ForwardPass, Layout
from trl_attribution.activations.schedule import OnProgress, TokenBudget, batches, run_in_batches
from trl_attribution.activations.workers import Workers, workers_for
from trl_attribution.errors import ModelError, SettingsError
from trl_attribution.pairs import EncodedPair, EncodedResponse

MakeModel = Callable[[str], PreTrainedModel]
INNER_LAYERS = tuple(range(LAYERS))  # 0..3: the last layer needs a hook in the naive computation, tested apart


def random_groups(seed: int = 0, count: int = 5, longest: int = 30) -> list[PromptGroup]:
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(3, 400, (length,), generator=generator).tolist()

    return [PromptGroup(ids(2, longest), [ids(1, longest) for _ in range(1 + index % 3)]) for index in range(count)]


def naive_activations(
    model: PreTrainedModel, groups: Sequence[PromptGroup], layers: Sequence[int]
) -> list[GroupActivations]:
    return [
        GroupActivations(
            naive.context(model, group.prompt_ids, layers),
            torch.stack([naive.mean_activation(model, group.prompt_ids, r, layers) for r in group.responses]),
        )
        for group in groups
    ]


def assert_equal(left: Sequence[GroupActivations], right: Sequence[GroupActivations]) -> None:
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a.context, b.context, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(a.responses, b.responses, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_equals_the_naive_computation(architecture: str, make_model: MakeModel) -> None:
    model = make_model(architecture)
    engine = ActivationEngine(model, ActivationConfig(layers=INNER_LAYERS))
    groups = random_groups()
    assert_equal(engine.activations(groups), naive_activations(model, groups, INNER_LAYERS))
    assert engine.path == ("plain" if architecture == "mamba" else "packed"), engine.path_reason


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_plain_path_equals_the_naive_computation(architecture: str, make_model: MakeModel) -> None:
    model = make_model(architecture)
    engine = ActivationEngine(model, ActivationConfig(layers=INNER_LAYERS, path="plain"))
    groups = random_groups(seed=1)
    assert_equal(engine.activations(groups), naive_activations(model, groups, INNER_LAYERS))


def test_the_last_layer_is_read_before_the_final_norm(make_model: MakeModel) -> None:
    model = make_model("llama")
    seen: list[torch.Tensor] = []
    group = random_groups(count=1)[0]
    handle = model.model.layers[-1].register_forward_hook(lambda _m, _a, output: seen.append(output))
    naive.hidden_states(model, [*group.prompt_ids, *group.responses[0]], [0])
    handle.remove()
    found = ActivationEngine(model, ActivationConfig(layers=(LAYERS,))).activations([group])[0]
    torch.testing.assert_close(found.responses[0, 0], seen[0][0, len(group.prompt_ids) :].mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("budget", [1, 40, 100, 10_000])
def test_the_token_budget_does_not_change_the_numbers(budget: int, make_model: MakeModel) -> None:
    model = make_model("gemma3")
    groups = random_groups(seed=2, count=7)
    engine = ActivationEngine(model, ActivationConfig(layers=(1, 3), token_budget=budget))
    assert_equal(engine.activations(groups), naive_activations(model, groups, (1, 3)))


def test_layers_come_back_in_the_order_asked_for(make_model: MakeModel) -> None:
    model = make_model("llama")
    groups = random_groups()
    forward = ActivationEngine(model, ActivationConfig(layers=(0, 3))).activations(groups)
    backward = ActivationEngine(model, ActivationConfig(layers=(3, 0))).activations(groups)
    for a, b in zip(forward, backward, strict=True):
        assert torch.equal(a.responses.flip(1), b.responses)


def encoded(prompt: list[int], chosen: list[int], rejected: list[int]) -> EncodedPair:
    return EncodedPair("0" * 32, EncodedResponse(prompt, chosen), EncodedResponse(prompt, rejected))


def test_a_pair_vector_is_chosen_minus_rejected(make_model: MakeModel) -> None:
    model = make_model("qwen2")
    pairs = [encoded([5, 6, 7], [8, 9], [10, 11, 12]), encoded([5, 6, 7], [10, 11, 12], [8, 9])]
    vectors = ActivationEngine(model, ActivationConfig(layers=(2,))).pair_vectors(pairs)
    expected = naive.mean_activation(model, [5, 6, 7], [8, 9], [2]) - naive.mean_activation(
        model, [5, 6, 7], [10, 11, 12], [2]
    )
    torch.testing.assert_close(vectors.pair[0], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(vectors.pair[1], -vectors.pair[0])
    torch.testing.assert_close(vectors.context[0], naive.context(model, [5, 6, 7], [2]), rtol=1e-4, atol=1e-5)


def test_a_shared_prompt_is_computed_once(make_model: MakeModel) -> None:
    prompt = list(range(3, 103))
    pairs = [encoded(prompt, [110 + i, 7], [120 + i, 8]) for i in range(4)]
    engine = ActivationEngine(make_model("llama"), ActivationConfig(layers=(2,), path="packed"))
    engine.pair_vectors(pairs)
    assert engine.stats.tokens_computed == 100 + 4 * 4
    assert engine.stats.tokens_in_sequences == 8 * 102


def test_a_pair_whose_truncation_left_two_prompts_gets_the_mean_context(make_model: MakeModel) -> None:
    model = make_model("llama")
    pair = EncodedPair("0" * 32, EncodedResponse([4, 5], [6]), EncodedResponse([5], [7, 8]))
    vectors = ActivationEngine(model, ActivationConfig(layers=(2,))).pair_vectors([pair])
    expected = (naive.context(model, [4, 5], [2]) + naive.context(model, [5], [2])) / 2
    torch.testing.assert_close(vectors.context[0], expected, rtol=1e-4, atol=1e-5)


def test_an_empty_prompt_has_a_zero_context(make_model: MakeModel) -> None:
    model = make_model("llama")
    found = ActivationEngine(model, ActivationConfig(layers=(2,))).activations([PromptGroup([], [[5, 6], [7]])])[0]
    assert not found.context.any()
    torch.testing.assert_close(found.responses[1], naive.mean_activation(model, [], [7], [2]), rtol=1e-4, atol=1e-5)


def test_the_model_is_left_as_it_was(make_model: MakeModel) -> None:
    model = make_model("gemma3").train()
    before = model.config._attn_implementation
    ActivationEngine(model, ActivationConfig(layers=(2,))).activations(random_groups())
    assert model.training and all(module.training for module in model.modules())
    assert model.config._attn_implementation == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_hooks_come_off_after_an_exception(make_model: MakeModel) -> None:
    model = make_model("llama")

    def fail(*_: object) -> None:
        raise KeyError("from the model")

    handle = model.model.layers[0].register_forward_hook(fail)
    with pytest.raises(KeyError):
        ActivationEngine(model, ActivationConfig(layers=(2,), path="packed")).activations(random_groups())
    handle.remove()
    assert not any(module._forward_hooks for module in model.modules())
    assert model.config._attn_implementation != "trl_attribution_packed"


def test_a_model_whose_packed_numbers_are_wrong_takes_the_plain_path(make_model: MakeModel) -> None:
    """A window kept in the mask alone (not handed to the attention layer) is what the self-check is there for."""
    model = make_model("gemma3")
    for block in model.model.layers:
        block.self_attn.sliding_window = None  # as if the architecture did not pass it on
    engine = ActivationEngine(model, ActivationConfig(layers=(2, 3)))
    groups = random_groups(seed=4, longest=40)
    assert_equal(engine.activations(groups), naive_activations(model, groups, (2, 3)))
    assert engine.path == "plain"
    assert "self-check" in engine.path_reason


def test_the_self_check_is_repeated_when_longer_sequences_turn_up(make_model: MakeModel) -> None:
    model = make_model("gemma3")
    for block in model.model.layers:
        block.self_attn.sliding_window = None
    engine = ActivationEngine(model, ActivationConfig(layers=(2, 3)))
    short = [PromptGroup([5, 6], [[7, 8], [9]])]
    engine.activations(short)
    assert engine.path == "packed"  # nothing is longer than the window of 8 yet
    long = random_groups(seed=5, longest=40)
    assert_equal(engine.activations(long), naive_activations(model, long, (2, 3)))
    assert engine.path == "plain"


def test_out_of_memory_halves_the_token_budget_and_goes_on(make_model: MakeModel) -> None:
    model = make_model("llama")
    groups = random_groups(seed=3, count=8)
    engine = ActivationEngine(model, ActivationConfig(layers=(2,), token_budget=400, path="packed"))

    def fail_on_large(_module: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        if kwargs["input_ids"].numel() > 120:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = model.register_forward_pre_hook(fail_on_large, with_kwargs=True)
    found = engine.activations(groups)
    handle.remove()
    assert_equal(found, naive_activations(model, groups, (2,)))
    assert engine.budget.halvings >= 1 and engine.budget.tokens <= 200


def test_one_sequence_that_does_not_fit_is_a_clear_error(make_model: MakeModel) -> None:
    model = make_model("llama")

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(fail)
    with pytest.raises(ModelError, match=r"single sequence of 3 tokens.*max_length"):
        ActivationEngine(model, ActivationConfig(layers=(2,), path="packed")).activations([PromptGroup([3, 4], [[5]])])


@pytest.mark.parametrize(("layers", "message"), [((5,), "0 .*to 4"), ((-1,), "out of range"), ((), "none given")])
def test_a_layer_out_of_range_lists_what_there_is(layers: tuple[int, ...], message: str, make_model: MakeModel) -> None:
    with pytest.raises(ModelError, match=message):
        ActivationEngine(make_model("llama"), ActivationConfig(layers=layers))


def test_a_wrong_blocks_path_lists_the_candidates(make_model: MakeModel) -> None:
    with pytest.raises(ModelError, match=r"'model\.layers' \(4\)"):
        ActivationEngine(make_model("llama"), ActivationConfig(layers=(1,), blocks_path="encoder.layer"))


def test_an_unknown_path_is_refused() -> None:
    with pytest.raises(SettingsError, match="auto, fused, packed, plain"):
        ActivationConfig(layers=(1,), path="fast")  # type: ignore[arg-type]


def test_batches_hold_every_item_once_within_the_budget() -> None:
    sizes = [5, 50, 7, 7, 100, 1]
    found = batches(sizes, 60)
    assert sorted(index for batch in found for index in batch) == list(range(6))
    assert all(sum(sizes[index] for index in batch) <= 60 or len(batch) == 1 for batch in found)


def test_batches_cost_alike() -> None:
    sizes = [int(size) for size in torch.randint(5, 90, (300,), generator=torch.Generator().manual_seed(0))]
    costs = [sum(sizes[index] for index in batch) for batch in batches(sizes, 1000)]
    assert max(costs) <= 1000
    assert max(costs) - min(costs) <= max(sizes)


def test_padded_batches_count_every_row_as_long_as_the_longest() -> None:
    sizes = [1000] * 3 + [10] * 300
    found = batches(sizes, 2048, padded=True)
    assert sorted(index for batch in found for index in batch) == list(range(303))
    assert all(len(batch) * sizes[batch[0]] <= 2048 for batch in found)
    assert len(found) <= 5


class CountingPass:
    """Stands in for a model: records sizes, fails above ``limit`` tokens, answers with each response's first id."""

    def __init__(self, limit: int = 10_000) -> None:
        self.seen: list[int] = []
        self.limit = limit

    def run(self, _layout: Layout, groups: Sequence[PromptGroup]) -> BatchActivations:
        tokens = sum(group.tokens for group in groups)
        if tokens > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.seen.append(tokens)
        found = [
            GroupActivations(torch.zeros(1, 1), torch.tensor([[[float(response[0])]] for response in group.responses]))
            for group in groups
        ]
        return BatchActivations(found, tokens)

    def over(
        self,
        groups: Sequence[PromptGroup],
        budget: TokenBudget,
        *,
        padded: bool = False,
        at_a_time: int = 1,
        on_progress: OnProgress = lambda *_: None,
    ) -> list[list[float]]:
        """The answers of batches of ``groups``, by group."""
        with ThreadPoolExecutor(at_a_time) as pool:
            workers = Workers([self] * at_a_time, "packed", pool)  # type: ignore[list-item]
            found = run_in_batches(groups, budget, workers, padded=padded, on_progress=on_progress)
        assert found.tokens == sum(self.seen)
        return [group.responses.flatten().tolist() for group in found.groups]


def test_a_group_over_the_budget_is_split_without_losing_responses() -> None:
    group = PromptGroup(list(range(10)), [[number] * 8 for number in range(5)])
    model = CountingPass()
    assert model.over([group], TokenBudget(30)) == [[0, 1, 2, 3, 4]]
    assert max(model.seen) <= 30


def test_one_prompt_with_many_responses_is_split_when_memory_runs_out() -> None:
    group = PromptGroup(list(range(10)), [[number] * 8 for number in range(9)])
    budget, model = TokenBudget(1000), CountingPass(limit=30)
    assert model.over([group], budget) == [list(range(9))]
    assert budget.halvings >= 1 and max(model.seen) <= 30


@pytest.mark.parametrize("at_a_time", [1, 3])
def test_progress_counts_responses_up_to_their_total(at_a_time: int) -> None:
    groups = [PromptGroup([1], [[number] * 8 for number in range(4)]) for _ in range(5)]
    heard: list[tuple[int, int]] = []
    CountingPass().over(
        groups, TokenBudget(40), padded=True, at_a_time=at_a_time, on_progress=lambda *state: heard.append(state)
    )
    assert heard == sorted(heard) and len(heard) > 1 and heard[-1] == (20, 20)


def test_several_at_a_time_give_the_groups_in_their_order() -> None:
    groups = [PromptGroup([1] * (1 + number % 7), [[number], [number + 100]]) for number in range(50)]
    found = CountingPass().over(groups, TokenBudget(20), at_a_time=4)
    assert found == [[number, number + 100] for number in range(50)]


def test_batches_that_ran_out_of_memory_together_are_tried_alone_before_the_budget_is_halved() -> None:
    groups = [PromptGroup([number], [[number] * 9]) for number in range(6)]
    both_run, first_two = threading.Barrier(2), iter([True, True])

    class TooLittleForTwo(CountingPass):
        def run(self, layout: Layout, groups: Sequence[PromptGroup]) -> BatchActivations:
            if next(first_two, False):
                both_run.wait(timeout=60)
                raise MemoryError
            return super().run(layout, groups)

    budget, model = TokenBudget(10), TooLittleForTwo()  # one sequence a batch: halved, it could not run at all
    assert model.over(groups, budget, at_a_time=2) == [[number] for number in range(6)]
    assert budget.tokens == 10 and budget.halvings == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_workers_on_copies_of_the_modules_equal_the_naive_computation(
    architecture: str, make_model: MakeModel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="trl_attribution")
    model = make_model(architecture)
    groups = random_groups(seed=6, count=12)
    engine = ActivationEngine(model, ActivationConfig(layers=INNER_LAYERS, token_budget=60, workers=3))
    assert_equal(engine.activations(groups), naive_activations(model, groups, INNER_LAYERS))
    assert "cannot be copied" not in caplog.text


def test_workers_leave_the_weights_and_the_threads_as_they_were(make_model: MakeModel) -> None:
    model, threads = make_model("llama"), torch.get_num_threads()
    places = [parameter.data_ptr() for parameter in model.parameters()]
    ActivationEngine(model, ActivationConfig(layers=(2,), token_budget=40, workers=2)).activations(random_groups())
    assert [parameter.data_ptr() for parameter in model.parameters()] == places
    assert torch.get_num_threads() == threads
    assert not any(thread.name.startswith("trl-attribution") for thread in threading.enumerate())


def test_a_worker_runs_on_shared_weights_and_modules_of_its_own(make_model: MakeModel) -> None:
    model = make_model("llama")
    engine = ActivationEngine(model, ActivationConfig(layers=(2,)))
    forward = ForwardPass(engine.runner, engine.blocks, engine.layers)
    with workers_for(forward, "packed", 0, asked=3) as workers:
        assert workers.count == 3
        passes = [workers._idle.get() for _ in range(3)]
    models = [one.runner.model for one in passes]
    assert len({id(module) for one in models for module in one.modules()}) == 3 * len(list(model.modules()))
    assert len({parameter.data_ptr() for one in models for parameter in one.parameters()}) == len(
        {parameter.data_ptr() for parameter in model.parameters()}
    )


def test_a_model_with_hooks_is_run_one_pass_at_a_time(make_model: MakeModel) -> None:
    model = make_model("llama")
    seen: list[int] = []
    model.model.layers[0].register_forward_hook(lambda *_: seen.append(threading.get_ident()))
    groups = random_groups(seed=7, count=9)
    engine = ActivationEngine(model, ActivationConfig(layers=(2,), token_budget=50, workers=2))
    assert_equal(engine.activations(groups), naive_activations(model, groups, (2,)))
    assert set(seen) == {threading.get_ident()}


def test_an_error_of_one_worker_ends_all(make_model: MakeModel) -> None:
    engine = ActivationEngine(make_model("llama"), ActivationConfig(layers=(2,), token_budget=20, workers=2))
    wrong = PromptGroup([3, 4], [[10**6]])  # no such token
    with pytest.raises(IndexError):
        engine._in_layout("packed", [*random_groups(), wrong])
    assert not any(thread.name.startswith("trl-attribution") for thread in threading.enumerate())
    engine.activations(random_groups())


def test_no_workers_are_refused() -> None:
    with pytest.raises(SettingsError, match="workers: 0"):
        ActivationConfig(layers=(1,), workers=0)


def test_packed_by_force_says_when_a_model_cannot(make_model: MakeModel) -> None:
    engine = ActivationEngine(make_model("mamba"), ActivationConfig(layers=(2,), path="packed"))
    with pytest.raises(ModelError, match="use path 'auto' or 'plain'"):
        engine.activations(random_groups())


def test_prompts_that_open_alike_share_their_opening(make_model: MakeModel) -> None:
    opening = list(range(3, 53))
    groups = [PromptGroup([*opening, 100 + index], [[7, 8], [7, 9]]) for index in range(3)]
    model = make_model("gemma3")
    engine = ActivationEngine(model, ActivationConfig(layers=(1, 3), path="packed"))
    assert_equal(engine.activations(groups), naive_activations(model, groups, (1, 3)))
    assert engine.stats.tokens_computed == 50 + 3 * (1 + 1 + 2)


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - {"mamba"}))
def test_fused_attention_equals_the_naive_computation(architecture: str, make_model: MakeModel) -> None:
    model = make_model(architecture)
    engine = ActivationEngine(model, ActivationConfig(layers=INNER_LAYERS, path="fused"))
    groups = random_groups(seed=8, count=12)  # a stream of several blocks
    assert_equal(engine.activations(groups), naive_activations(model, groups, INNER_LAYERS))


@pytest.mark.parametrize("window", [None, 9, 200])
def test_a_fused_mask_shows_every_token_its_own_prefix(window: int | None) -> None:
    opening = list(range(3, 150))
    groups = [PromptGroup([*opening, *[20 + index] * 40], [[7] * 90, [7, 9] * (1 + index)]) for index in range(3)]
    groups += random_groups(seed=9, count=9, longest=60)
    layout = pack(groups, torch.device("cpu"), fused=True)
    assert isinstance(layout.attention, Visibility)
    length, real = layout.input_ids.shape[1], max(int(row[-1]) for row in layout.rows) + 1
    expected = torch.zeros(length, length, dtype=torch.bool)
    for row in layout.rows:
        for place, query in enumerate(row):
            expected[query, row[: place + 1] if window is None else row[max(0, place + 1 - window) : place + 1]] = True
    expected[range(real, length), range(real, length)] = True  # padding sees itself
    mask = layout.attention.mask(window)
    places = torch.arange(length)
    sees = mask.mask_mod(places, places, places[:, None], places[None])
    blocks = mask.to_dense()[0, 0].bool().repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    assert length % BLOCK == 0 and not blocks.all()
    assert torch.equal(sees & blocks, expected)
    assert mask.full_kv_num_blocks is not None
    for query, (count, keys) in enumerate(zip(mask.full_kv_num_blocks[0, 0], mask.full_kv_indices[0, 0], strict=True)):
        for key in keys[:count].tolist():
            assert expected[query * BLOCK :, key * BLOCK :][:BLOCK, :BLOCK].all()


def test_fused_attention_is_kept_where_it_agrees_and_left_where_it_does_not(make_model: MakeModel) -> None:
    model, groups = make_model("gemma3"), random_groups(seed=4, longest=40)
    engine = ActivationEngine(model, ActivationConfig(layers=(2, 3)))
    engine._choice._left.insert(0, "fused")  # as on CUDA
    engine.activations(groups)
    assert engine.path == "fused", engine.path_reason
    for block in model.model.layers:
        block.self_attn.sliding_window = None
    engine = ActivationEngine(model, ActivationConfig(layers=(2, 3)))
    engine._choice._left.insert(0, "fused")
    assert_equal(engine.activations(groups), naive_activations(model, groups, (2, 3)))
    assert engine.path == "plain"
    assert "the fused path" in engine.path_reason and "the packed path" in engine.path_reason


def test_a_fused_path_that_cannot_be_compiled_for_longer_streams_is_left_amid_the_work(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short_only(query: torch.Tensor, *arguments: Any) -> torch.Tensor:
        if query.shape[2] > 2 * BLOCK:
            raise TorchDynamoException("no kernel")
        return fused_attention(query, *arguments)

    monkeypatch.setattr(attention, "fused_attention", short_only)
    model, groups = make_model("llama"), random_groups(seed=11, count=16)
    engine = ActivationEngine(model, ActivationConfig(layers=(2,)))
    engine._choice._left.insert(0, "fused")
    engine.activations(groups[:3])
    assert engine.path == "fused"
    assert_equal(engine.activations(groups), naive_activations(model, groups, (2,)))
    assert engine.path == "packed" and "no kernel" in engine.path_reason
