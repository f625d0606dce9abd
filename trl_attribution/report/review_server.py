"""The review page served to one person on this machine, every decision written to disk as it is made."""

from __future__ import annotations

import hmac
import json
import re
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, Self, cast

from filelock import FileLock

from trl_attribution.errors import AttributionError, ManifestError, SettingsError
from trl_attribution.manifest.decisions import ReviewDecision, ReviewDecisions
from trl_attribution.report.cluster_probes import ClusterProbes
from trl_attribution.utils.kinds import PAIR
from trl_attribution.utils.text import printable

HOST: Final = "127.0.0.1"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_MOST_BYTES = 16 * 2**20
"""Of one request: a decision about 400,000 pairs."""
_LONGEST_NOTE = 10_000
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Saved:
    """What saving did to the number of the decisions' version."""

    before: int
    revision: int


class DecisionsFile:
    """One reviewer's decisions in an audit folder; several tabs, threads and servers can write to it."""

    def __init__(self, folder: Path, reviewer: str, fingerprint: str) -> None:
        self.reviewer = reviewer
        self.path = folder / f"decisions.{reviewer}.jsonl"
        self._fingerprint = fingerprint
        self._lock = threading.Lock()
        self._file_lock = FileLock(folder / f".decisions.{reviewer}.lock")
        self._seen: tuple[int, ...] | None = None
        self._decisions: tuple[ReviewDecision, ...] = ()
        self._revision = 0

    @classmethod
    def open(cls, folder: Path, reviewer: str, fingerprint: str) -> Self:
        """The decisions that ``reviewer`` has made so far, checked.

        Args:
            folder: the audit folder; nothing is written outside it.
            reviewer: letters, digits, dashes and underscores: it becomes part of the file's name.
            fingerprint: of the dataset that was audited.

        Raises:
            SettingsError: the name cannot be a file's, or the file is a link that leads elsewhere.
            ManifestError: the file is broken or about another dataset.
        """
        if not _NAME.fullmatch(reviewer):
            raise SettingsError(
                f"reviewer: {printable(reviewer, 80)!r} cannot be part of a file's name; use letters, digits, dashes "
                "and underscores"
            )
        found = cls(folder, reviewer, fingerprint)
        if found.path.is_symlink():
            raise SettingsError(f"{found.path} is a link: decisions are written to the audit folder itself. Remove it.")
        found.read()
        return found

    def read(self) -> tuple[int, tuple[ReviewDecision, ...]]:
        """All decisions, and a number that grows whenever they changed."""
        with self._lock:
            self._refresh()
            return self._revision, self._decisions

    def put(self, changes: Mapping[str, ReviewDecision | None]) -> Saved:
        """Replace what this reviewer decided about some pairs, or take it back; the whole file is replaced at once.

        Raises:
            AttributionError: it cannot be written; what was there stays.
        """
        with self._lock, self._file_lock:
            self._refresh()  # another server may have written since
            before = self._revision
            others = [one for one in self._decisions if one.reviewer != self.reviewer or one.pair_id not in changes]
            kept = (*others, *(one for one in changes.values() if one is not None))
            ReviewDecisions(self._fingerprint, kept).save(self.path)
            self._decisions, self._revision, self._seen = kept, before + 1, self._stamp()
            return Saved(before, self._revision)

    def _refresh(self) -> None:
        stamp = self._stamp()
        if stamp != self._seen:
            self._decisions = self._load().decisions
            self._revision += 1
            self._seen = stamp

    def _stamp(self) -> tuple[int, ...]:
        """Another one for every version of the file, since each is a new file."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return ()
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _load(self) -> ReviewDecisions:
        if not self.path.exists():
            return ReviewDecisions(self._fingerprint, ())
        found = ReviewDecisions.load(self.path)
        if found.dataset_fingerprint != self._fingerprint:
            raise ManifestError(f"{self.path} is about another dataset than this audit. Move it elsewhere.")
        return found


class ReviewServer:
    """Serves ``page`` and its decisions on loopback; only a browser that was given :attr:`url` is answered.

    Args:
        page: the page, rendered for a server.
        decisions: where decisions go.
        pair_ids: the pairs that can be decided about.
        port: 0 takes a free one.
        probes: registers clusters as probes; None where the page shows none.
        told: what decisions come to, in sentences for the page.
        actions: what can be decided.

    Raises:
        AttributionError: the port is taken.
    """

    def __init__(
        self,
        page: str,
        decisions: DecisionsFile,
        pair_ids: frozenset[str],
        port: int = 0,
        probes: ClusterProbes | None = None,
        told: Callable[[Sequence[ReviewDecision]], list[str]] = lambda _decisions: [],
        actions: Sequence[str] = ("keep", *PAIR.actions),
    ) -> None:
        self.decisions = decisions
        self.told = told
        self.actions = actions
        self.probes = probes
        self.pair_ids = pair_ids
        self.page = page.encode()
        self.token = secrets.token_urlsafe(32)
        try:
            self._server = _HttpServer((HOST, port), _Handler)
        except OSError as error:
            raise AttributionError(
                f"cannot listen on port {port} of {HOST}: {error.strerror or error}. Choose another --port."
            ) from error
        self._server.review = self
        self.hosts = {f"{HOST}:{self.port}", f"localhost:{self.port}"}

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """What to open; whoever has it can decide."""
        return f"http://{HOST}:{self.port}/{self.token}/"

    def serve(self) -> None:
        """Answer until :meth:`close`."""
        self._server.serve_forever(poll_interval=0.2)

    def close(self) -> None:
        """Stop answering; what was decided is on disk already."""
        self._server.shutdown()
        self._server.server_close()

    def take(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Save decisions that a page sent, all or none; the versions before and after.

        Raises:
            AttributionError: one is malformed, or about a pair that is not listed.
        """
        groups = values.get("changes")
        if not isinstance(groups, list) or not groups:
            raise SettingsError("changes: a list of pair ids with the decision about them")
        changes: dict[str, ReviewDecision | None] = {}
        for group in groups:
            pair_ids, sent = (group.get("pair_ids"), group.get("decision")) if isinstance(group, dict) else (None, None)
            if not isinstance(pair_ids, list) or not all(isinstance(one, str) for one in pair_ids):
                raise SettingsError("pair_ids: a list of pair ids")
            if not self.pair_ids.issuperset(pair_ids):
                raise SettingsError("the audit lists no such pair")
            changes |= {one: None if sent is None else self._decision(one, sent) for one in pair_ids}
        saved = self.decisions.put(changes)
        return {**asdict(saved), "told": self.told(self.decisions.read()[1])}

    def register(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Make a cluster that a page names a probe; what to tell the page of it.

        Raises:
            AttributionError: it is malformed, names no cluster or no name for a probe, or cannot be written.
        """
        discovery, cluster, name = (values.get(key) for key in ("discovery", "cluster", "name"))
        if self.probes is None or type(discovery) is not int or type(cluster) is not int or not isinstance(name, str):
            raise SettingsError("the page shows no such cluster")
        made = self.probes.register(discovery, cluster, name)
        return {"saved": str(made.folder), "fingerprint": made.fingerprint, "already": made.already}

    def _decision(self, pair_id: str, sent: Any) -> ReviewDecision:
        from pydantic import ValidationError

        if not isinstance(sent, dict):
            raise SettingsError("a decision is an object")
        note = sent.get("note", "")
        if not isinstance(note, str) or len(note) > _LONGEST_NOTE:
            raise SettingsError(f"note: a text of at most {_LONGEST_NOTE:,} characters")
        if sent.get("action") not in self.actions:
            raise SettingsError(f"action: choose {', '.join(self.actions)}")
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        try:
            return ReviewDecision(pair_id, sent.get("action"), note, self.decisions.reviewer, now)  # type: ignore[arg-type]  # checked by it
        except ValidationError as error:
            raise SettingsError(f"action: {error.errors(include_url=False)[0]['msg']}") from None


class _HttpServer(ThreadingHTTPServer):
    """Knows the review that its handlers answer for."""

    daemon_threads = True
    review: ReviewServer


class _Handler(BaseHTTPRequestHandler):
    """Three paths below the token: the page, its decisions, and probes of clusters."""

    timeout = 30

    @property
    def review(self) -> ReviewServer:
        return cast("_HttpServer", self.server).review

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if not self._allowed(path):
            return
        if path == f"/{self.review.token}/":
            self._answer(200, self.review.page, "text/html; charset=utf-8")
        elif path == f"/{self.review.token}/decisions":
            self._decisions(query)
        else:
            self._refuse(404, "there is nothing here")

    def do_POST(self) -> None:
        if not self._allowed(self.path):
            return
        known = {"decisions": self.review.take, "probes": self.review.register}
        act = known.get(self.path.removeprefix(f"/{self.review.token}/"))
        if act is None:
            self._refuse(404, "there is nothing here")
        elif self.headers.get("Origin") not in {f"http://{host}" for host in self.review.hosts}:
            self._refuse(403, "this request does not come from the review page")
        elif self.headers.get_content_type() != "application/json":
            self._refuse(415, "this has to be sent as application/json")
        else:
            self._take(act)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
        """Say nothing: the token would stand in every line."""

    def _take(self, act: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _MOST_BYTES:
            self._refuse(413, "a decision is smaller than that")
            return
        try:
            values = json.loads(self.rfile.read(int(length)))
            answer = act(values if isinstance(values, dict) else {})
        except (ValueError, RecursionError):
            self._refuse(400, "this is no JSON")
        except AttributionError as error:
            self._refuse(400 if isinstance(error, SettingsError) else 500, str(error))
        else:
            self._answer(200, json.dumps(answer).encode(), "application/json")

    def _decisions(self, query: str) -> None:
        try:
            revision, found = self.review.decisions.read()
        except AttributionError as error:
            self._refuse(500, str(error))
            return
        news: dict[str, Any] = {"revision": revision, "decisions": None}
        if query != f"since={revision}":
            news |= {"decisions": [asdict(one) for one in found], "told": self.review.told(found)}
        self._answer(200, json.dumps(news).encode(), "application/json")

    def _allowed(self, path: str) -> bool:
        """Whether the browser was given the link, and does not come here by another name (DNS rebinding)."""
        token = path.split("/")[1] if path.startswith("/") else ""
        if self.headers.get("Host") not in self.review.hosts:
            self._refuse(403, "this server answers under its own address only")
        elif self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            self._refuse(403, "another site asked for this")
        elif not hmac.compare_digest(token.encode(), self.review.token.encode()):
            self._refuse(404, "there is nothing here: use the link that the command printed")
        else:
            return True
        return False

    def _refuse(self, status: int, why: str) -> None:
        # What the request still holds is not read: the connection cannot go on.
        self.close_connection = True
        self._answer(status, why.encode(), "text/plain; charset=utf-8")

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
