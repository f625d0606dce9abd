"""A DPO loop of one's own on Accelerate, under audit: no trainer, and three lines for the tracker.

trl-attribution demo
python examples/plain_accelerate_dpo.py --model MODEL --data demo/data.jsonl --probes demo/probes
accelerate launch --num_processes 2 examples/plain_accelerate_dpo.py --model MODEL --data ... --probes ...
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_attribution.callbacks import AttributionTracker
from trl_attribution.pairs import EncodedPair, Encoding, PairReader, encode_pairs


def main() -> None:
    args = parse_args()
    accelerator = Accelerator()
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    policy = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval().requires_grad_(False)
    reference.to(accelerator.device)

    # The tokens that TRL would train on: by them the tracker knows which pair a row of a batch is.
    encoded = encode_pairs(list(PairReader(args.data)), tokenizer, Encoding(args.max_length))
    pairs = [pair for pair in encoded if isinstance(pair, EncodedPair)]
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    loader = DataLoader(pairs, args.batch_size, shuffle=True, collate_fn=partial(collate, pad=pad))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=args.learning_rate)
    policy, optimizer, loader = accelerator.prepare(policy, optimizer, loader)

    tracker = AttributionTracker(
        reference,
        tokenizer,
        args.data,
        max_length=args.max_length,
        policy=policy,
        probes=args.probes,
        layers=args.layers,
        flag_at=args.flag_at,
        output_dir=f"{args.output}/audit",
    )
    with tracker:
        for step, batch in enumerate(loader, start=1):
            tokens = (batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
            with torch.no_grad(), tracker.batch(*tokens):
                expected = log_probabilities(reference, *tokens)
            loss = dpo_loss(log_probabilities(policy, *tokens), expected, args.beta)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            if step % args.log_every == 0:
                logged = {"loss": accelerator.reduce(loss.detach(), "mean").item(), **tracker.metrics()}
                accelerator.print(step, {name: round(value, 4) for name, value in logged.items()})
            if step % args.save_every == 0:
                tracker.save()
                accelerator.save_state(f"{args.output}/checkpoint")
    if tracker.finished is not None:  # on the main process
        print(f"{len(tracker.finished.audit.index)} pairs audited in {args.output}/audit")


def collate(pairs: list[EncodedPair], pad: int) -> dict[str, Tensor]:
    """[2B, T], chosen sequences first."""
    sequences = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    width = max(len(one.prompt_ids) + len(one.response_ids) for one in sequences)
    shape = (len(sequences), width)
    batch = {
        "input_ids": torch.full(shape, pad),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "completion_mask": torch.zeros(shape, dtype=torch.long),
    }
    for row, one in enumerate(sequences):
        start, end = len(one.prompt_ids), len(one.prompt_ids) + len(one.response_ids)
        batch["input_ids"][row, :end] = torch.tensor(one.prompt_ids + one.response_ids)
        batch["attention_mask"][row, :end] = 1
        batch["completion_mask"][row, start:end] = 1
    return batch


def log_probabilities(
    model: torch.nn.Module, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor
) -> Tensor:
    """Of each response: [2B]."""
    logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1]
    of_tokens = logits.log_softmax(-1).gather(2, input_ids[:, 1:, None]).squeeze(2)
    return (of_tokens * completion_mask[:, 1:]).sum(1)


def dpo_loss(of_policy: Tensor, of_reference: Tensor, beta: float) -> Tensor:
    chosen, rejected = (of_policy - of_reference).chunk(2)
    return -logsigmoid(beta * (chosen - rejected)).mean()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder or Hub id: M0, and where training starts")
    parser.add_argument("--data", required=True, help="preference pairs: a JSONL, Parquet or CSV file, or a Hub id")
    parser.add_argument("--output", default="run", help="folder for the audit and the checkpoint")
    parser.add_argument("--probes", help="folder of probes")
    parser.add_argument("--layers", type=int, nargs="+", help="layers to read; left out: those of the probes")
    parser.add_argument("--flag-at", type=float, help="score from which a pair counts as flagged in the log")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=4, help="pairs a process")
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--log-every", type=int, default=10, help="steps")
    parser.add_argument("--save-every", type=int, default=100, help="steps")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
