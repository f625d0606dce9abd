"""What verbs print: tables or JSON to stdout, progress and errors to stderr."""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from trl_attribution.cli.options import CONFIG_FILE
from trl_attribution.cli.paths import check_paths
from trl_attribution.cli.settings import with_options
from trl_attribution.errors import AttributionError
from trl_attribution.utils.compat import check_versions
from trl_attribution.utils.distributed import RankError, end_rank, leave_ranks
from trl_attribution.utils.tables import people_console, tell
from trl_attribution.utils.text import duration_text

_QUIET = {
    "transformers": {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    "datasets": {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1"},
    "tqdm": {"TQDM_DISABLE": "1"},  # what transformers draws by itself while it reads a GGUF file
}
PROGRESS_SECONDS = 60.0
"""Between two lines of progress in a log."""
_STAGES = {
    "read": "Reading",
    "vectors": "Computing vectors",
    "scores": "Scoring",
    "responses": "Sampling responses",
    "witness": "Asking M0",
}


@dataclass
class Output:
    """Where one verb's words go; of several ranks only the main one speaks."""

    config: Path | None = field(default=None, metadata={"typer": CONFIG_FILE})
    """Read before the other options."""
    quiet: bool = field(default=False, metadata={"typer": typer.Option("--quiet")})
    """Print results and errors only, no progress."""
    as_json: bool = field(default=False, metadata={"typer": typer.Option("--json")})
    """Print one JSON document instead of tables."""
    debug: bool = field(default=False, metadata={"typer": typer.Option("--debug")})
    """Show the traceback of an error, and what the libraries say."""

    def __post_init__(self) -> None:
        self.speaks = is_main_rank()
        self.quiet = self.quiet or not self.speaks
        self.console = people_console()
        self.errors = Console(stderr=True)

    def show(self, *renderables: RenderableType) -> None:
        """Print for people; nothing with ``--json``."""
        if self.speaks and not self.as_json:
            tell(self.console, *renderables)

    def say(self, text: str) -> None:
        """One line on stderr about what happens next; nothing with ``--quiet`` or ``--json``."""
        if not self.quiet and not self.as_json:
            self.errors.print(Text(text), soft_wrap=not self.errors.is_terminal)

    def document(self, value: dict[str, Any]) -> None:
        """Print for machines; nothing without ``--json``."""
        if self.speaks and self.as_json:
            typer.echo(json.dumps(value, indent=2, ensure_ascii=True, default=str))

    @contextmanager
    def progress(self) -> Iterator[Callable[[str, int, int], None]]:
        """A callback (stage, done, total) that draws a bar a stage; in a log, a line now and then in its place."""
        if not self.errors.is_interactive:
            yield _ProgressLines(self.say)
            return
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeRemainingColumn(),
            console=self.errors,
            disable=self.quiet or self.as_json,
        ) as bars:
            tasks: dict[str, Any] = {}

            def report(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(_STAGES.get(stage, stage), total=total or None)
                bars.update(tasks[stage], completed=done)

            yield report


@dataclass
class _ProgressLines:
    """Progress where no bar can be drawn: a line a minute, none for what takes less."""

    say: Callable[[str], None]
    stage: str = ""
    begun: float = 0.0
    told: float = 0.0
    before: int = 0
    """What was done of the stage when it began."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self.stage:
            self.stage, self.begun, self.told, self.before = stage, now, now, done
        elif now - self.told >= PROGRESS_SECONDS:
            self._tell(done, total, now)

    def _tell(self, done: int, total: int, now: float) -> None:
        self.told = now
        rate = (done - self.before) / (now - self.begun)
        left = f", {duration_text((total - done) / rate)} left" if total and rate else ""
        of = f" of {total:,}" if total else ""
        self.say(f"{_STAGES.get(self.stage, self.stage)}: {done:,}{of}, {rate:,.1f}/s{left}")


class _RateColumn(ProgressColumn):
    """Items a second so far."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f}/s", style="progress.data.speed")


def verb(command: Callable[..., None]) -> Callable[..., None]:
    """Make options of ``command``'s settings, and of a user's or a disk's error one message and exit code 2.

    ``--debug`` lets the traceback through.
    """
    command = with_options(command)

    @functools.wraps(command)
    def run(**kwargs: Any) -> None:
        _quieten_libraries(debug=bool(kwargs.get("debug")))
        try:
            with _disk_faults():
                check_paths(command, kwargs)
                check_versions()
                command(**kwargs)
        except AttributionError as error:
            if kwargs.get("debug"):
                raise
            # Another rank has told it already.
            if not isinstance(error, RankError):
                _report(error, as_json=bool(kwargs.get("as_json")))
            end_rank(2, after_main=isinstance(error, RankError))
            raise typer.Exit(2) from error
        else:
            end_rank(0)
        finally:
            leave_ranks()

    return run


@contextmanager
def _disk_faults() -> Iterator[None]:
    """What a disk or a network refuses, as an error that is told: where in the code that was helps nobody."""
    try:
        yield
    except BrokenPipeError:  # who reads has gone; typer ends then without a word
        raise
    except OSError as error:
        raise AttributionError(f"{error} (--debug shows where in the program)") from error


@contextmanager
def undecided() -> Iterator[None]:
    """For verbs whose exit code 1 is an answer: what goes wrong inside is none, and Python's own code would be 1."""
    try:
        with _disk_faults():
            yield
    except (AttributionError, typer.Exit):
        raise
    except Exception as error:
        from trl_attribution.gate.formats.neutral import visible

        for line in traceback.format_exc().splitlines():  # a row's text may be in it
            typer.echo(visible(line, 10_000), err=True)
        raise typer.Exit(2) from error


def is_main_rank() -> bool:
    """Whether this process is the one that speaks, by what a launcher says; needs no process group."""
    return int(os.environ.get("RANK", "0")) == 0


def _report(error: AttributionError, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"error": str(error), "kind": type(error).__name__}))
    from trl_attribution.gate.formats.neutral import visible

    message = Text("error: ", style="bold red")
    # A file's name or a row's text may be in it, and a CI runner may read along.
    message.append("\n".join(visible(line, 10_000) for line in str(error).split("\n")), "default not bold")
    Console(stderr=True, soft_wrap=True).print(message)


def quieten_what_loads() -> None:
    """Tell libraries that are loaded later, by their variables, what :func:`verb` tells those that are here."""
    if "--debug" in sys.argv or _file_says_debug():
        return
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)  # kept when it is set up
    for name, settings in _QUIET.items():
        if name not in sys.modules:
            for variable, value in settings.items():
                os.environ.setdefault(variable, value)


def _file_says_debug() -> bool:
    """Whether a ``--config`` file has ``debug: true`` on a line of its own; what else it holds is read later."""
    given = zip(["", *sys.argv], [*sys.argv, ""], strict=True)
    paths = [one for before, one in given if before == "--config"]
    paths += [one.removeprefix("--config=") for one in sys.argv if one.startswith("--config=")]
    try:
        texts = [Path(one).read_text(encoding="utf-8") for one in paths if one]
    except (OSError, ValueError):  # said when it is read
        return False
    return any(re.search(r"(?im)^debug:\s*true\b", one) for one in texts)


def _quieten_libraries(*, debug: bool) -> None:
    """Our warnings to stderr; the libraries' bars and notices would break into our tables."""
    # DeepSpeed calls torch by names that torch has given up; nothing that a user could mend.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    if not debug and (transformers := sys.modules.get("transformers")):
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
    if not debug and (datasets := sys.modules.get("datasets")):
        datasets.disable_progress_bars()
    logger = logging.getLogger("trl_attribution")
    if not is_main_rank():
        logger.setLevel(logging.ERROR)
    if not logger.handlers:
        handler: logging.Handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)-8s %(message)s"))
        if sys.stderr.isatty():
            handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False, markup=False)
        logger.addHandler(handler)
        logger.propagate = False
