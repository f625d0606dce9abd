"""Audits a DPO run of open-instruct: the one pass that it makes with M0 is read, before the first step.

`open_instruct/dpo_tune_cache.py` runs the model over its whole dataset to cache reference log-probabilities, while it
still is M0. Wrap what it calls there, and put that call inside the tracker:

    tracker = AttributionTracker(
        accelerator.unwrap_model(model), tokenizer, "preferences.jsonl",
        max_length=args.max_seq_length, probes="probes/", output_dir="audit/",
    )
    with tracker:
        reference_cache = dpo_utils.build_reference_logprobs_cache(
            ..., forward_fn=audited(args.forward_fn, dpo_utils.concatenated_inputs, tracker)
        )

The audit is whole once the block is left. Where the cache is on disk already, no forward runs, and the tracker reads
the pairs in a pass of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from trl_attribution.callbacks import AttributionTracker

Batch = Mapping[str, Any]


def audited(
    forward_fn: Callable[..., Any],
    concatenated_inputs: Callable[[Batch], Mapping[str, Tensor]],
    tracker: AttributionTracker,
) -> Callable[..., Any]:
    """``forward_fn`` (``concatenated_forward``, without packing) with each of its forwards read by ``tracker``."""

    def forward(model: Any, batch: Batch, **settings: Any) -> Any:
        whole = concatenated_inputs(batch)
        responses = whole["concatenated_labels"] != -100
        with tracker.batch(whole["concatenated_input_ids"], whole["concatenated_attention_mask"], responses):
            return forward_fn(model, batch, **settings)

    return forward
