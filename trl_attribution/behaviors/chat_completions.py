"""Calls to an OpenAI-compatible ``/chat/completions``, tried again in patience; answers are a text, or YES or NO."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from trl_attribution.errors import ProbeError, SettingsError
from trl_attribution.utils.text import json_fault, printable

T = TypeVar("T")
_MOST_BYTES = 1 << 20
# Busy, or not our fault: the same call may succeed later.
_PASSING = {408, 409, 425, 429}
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
_WORD = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)


@dataclass(frozen=True)
class EndpointConfig:
    """How an endpoint is called, and how long and how often."""

    api_key_env: str = field(default="", metadata={"option": "judge_key_env"})
    """Environment variable with the key of an endpoint; empty sends none."""
    timeout: float = field(default=20.0, metadata={"option": "judge_timeout"})
    """Seconds for one call of an endpoint, until the last byte of its answer."""
    give_up_after: float | None = None
    """Seconds for one response, retries and the waits between them included; None is 2.5 times ``timeout``."""
    retries: int = 3
    backoff: float = 1.0
    """Seconds before the first retry; each further wait is twice as long, or what the server asks for."""
    max_calls: int = field(default=1000, metadata={"option": "judge_calls"})
    """Budget: calls of an endpoint in the judge's lifetime, retries included."""
    parallel: int = 4
    """Calls under way at once."""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0, "max_tokens": 16})
    """Sent with every call, besides the model and the messages; a model that thinks aloud needs more tokens."""

    def __post_init__(self) -> None:
        for name, least in (("max_calls", 1), ("parallel", 1), ("retries", 0), ("backoff", 0)):
            if getattr(self, name) < least:
                raise SettingsError(f"endpoint: {name} must be at least {least}, not {getattr(self, name)}")
        for name, seconds in (("timeout", self.timeout), ("give_up_after", self.patience)):
            if seconds <= 0:
                raise SettingsError(f"endpoint: {name} must be positive, not {seconds}")
        if self.api_key_env and not os.environ.get(self.api_key_env):
            raise SettingsError(
                f"endpoint: the environment variable {printable(self.api_key_env, 80)} for the key is not set; "
                "export it, or name no variable"
            )

    @property
    def patience(self) -> float:
        """Seconds after which a response is given up."""
        return 2.5 * self.timeout if self.give_up_after is None else self.give_up_after


class PassingFaultError(Exception):
    """A call failed in a way that a later one may not; ``retry_after`` are the seconds that the server asks for."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UnanswerableError(Exception):
    """There is no point in calling again."""


def persistent(
    call: Callable[[float], T],
    config: EndpointConfig,
    what: str,
    spend: Callable[[str], None] = lambda _fault: None,
    stop: threading.Event | None = None,
) -> T:
    """What ``call`` gives, which is told how many seconds it has; called again after a fault that may pass.

    ``spend`` is called before each call with the last fault, and may refuse it; ``stop`` ends the waiting.

    Raises:
        UnanswerableError: there is no point in calling again, or it was called as often and long as ``config`` says.
    """
    stopped = stop or threading.Event()
    deadline = time.monotonic() + config.patience
    wait, fault, attempts = config.backoff, "", 0
    while attempts <= config.retries and time.monotonic() < deadline and not stopped.is_set():
        spend(fault)
        attempts += 1
        try:
            return call(max(min(config.timeout, deadline - time.monotonic()), 0.001))
        except PassingFaultError as error:
            fault = str(error)
            pause = max(wait, error.retry_after)
            if time.monotonic() + pause >= deadline:
                break
            stopped.wait(pause)
            wait *= 2
    raise UnanswerableError(f"no {what} after {attempts} calls; the last: {fault or 'stopped'}")


class ChatCompletions:
    """The service at ``url``, the address without or with ``/chat/completions``.

    Raises:
        ProbeError: ``url`` is not an http or https address, or holds a password, which would end up in files.
        SettingsError: ``key`` cannot be a key.
    """

    def __init__(self, url: str, key: str) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ProbeError(f"endpoint address {printable(url, 120)!r}: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ProbeError(
                f"endpoint address {printable(url, 120)!r}: give an http or https one, such as http://localhost:8000/v1"
            )
        if parts.username is not None or parts.query:
            raise ProbeError(
                f"endpoint address at {printable(parts.hostname)}: leave out user, password and query, which would be "
                "written to files; name the environment variable of a key instead"
            )
        path = quote(parts.path.rstrip("/"), safe="/%")
        self.path = path if path.endswith("/chat/completions") else f"{path}/chat/completions"
        self.shown = printable(f"{parts.scheme}://{parts.netloc}{self.path}")
        self._where = (parts.hostname, port)
        self._class = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        # A header cannot hold it, and the message of http.client would show it.
        if not (key.isascii() and key.isprintable()):
            raise SettingsError(
                f"endpoint {self.shown}: the key holds characters that a key cannot have; "
                "does its environment variable hold a whole file?"
            )
        self._key = key

    def says_yes(self, request: Mapping[str, Any], seconds: float) -> bool:
        """Whether the answer to ``request`` starts with YES, after at most ``seconds``.

        Raises:
            PassingFaultError: no connection, no answer in time, a busy or broken server, or an answer that is
                neither YES nor NO.
            UnanswerableError: the server refuses the request as such.
        """
        content = self.answer(request, seconds)
        word = _WORD.match(content)
        if word is None:
            raise PassingFaultError(f"an answer that is neither YES nor NO: {printable(content, 80)!r}")
        return word[1].lower() == "yes"

    def answer(self, request: Mapping[str, Any], seconds: float) -> str:
        """The text of the answer to ``request``, without what the model thought aloud, after at most ``seconds``.

        It is empty where the answer has no text. Do not trust it: whoever wrote the data may speak through it.

        Raises:
            PassingFaultError: no connection, no answer in time, or a busy or broken server.
            UnanswerableError: the server refuses the request as such.
        """
        status, retry_after, raw = self._call(json.dumps(request).encode("ascii"), seconds)
        if status in _PASSING or status >= 500:
            raise PassingFaultError(f"status {status}{self._excerpt(raw)}", retry_after)
        if status != 200:
            hint = " (redirects are not followed: give the final address)" if 300 <= status < 400 else ""
            raise UnanswerableError(f"status {status}{hint}{self._excerpt(raw)}")
        return self._content(raw)

    def _content(self, raw: bytes) -> str:
        try:
            content = json.loads(raw)["choices"][0]["message"]["content"]
        except (ValueError, RecursionError) as error:
            raise PassingFaultError(f"an answer that is not JSON ({json_fault(error)})") from error
        except (LookupError, TypeError) as error:
            raise PassingFaultError(f"an answer without choices[0].message.content:{self._excerpt(raw)}") from error
        return _THOUGHTS.sub("", content) if isinstance(content, str) else ""

    def _call(self, body: bytes, seconds: float) -> tuple[int, float, bytes]:
        """Status, Retry-After and body of one POST."""
        deadline = time.monotonic() + seconds
        connection = self._class(*self._where, timeout=seconds)
        late = threading.Event()
        timer: threading.Timer | None = None
        try:
            connection.connect()
            # The socket's own timeout starts anew with every byte that a slow server drips.
            timer = threading.Timer(max(0.0, deadline - time.monotonic()), _cut, (connection.sock, late))
            timer.daemon = True
            timer.start()
            connection.request("POST", self.path, body, self._headers())
            answer = connection.getresponse()
            raw = answer.read(_MOST_BYTES + 1)
            if late.is_set():
                raise TimeoutError
        except (OSError, HTTPException, UnicodeError) as error:
            if late.is_set() or isinstance(error, TimeoutError):
                raise PassingFaultError(f"no answer within {seconds:.3g} s") from error
            raise PassingFaultError(f"no answer ({printable(error, 120) or type(error).__name__})") from error
        finally:
            if timer is not None:
                timer.cancel()
            connection.close()
        if len(raw) > _MOST_BYTES:
            raise UnanswerableError(f"an answer of more than {_MOST_BYTES:,} bytes")
        return answer.status, _seconds(answer.getheader("Retry-After")), raw

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        return headers

    def _excerpt(self, raw: bytes) -> str:
        """The start of what the server says, without the key, should it repeat that."""
        text = raw.decode("utf-8", "replace").strip()
        if self._key:
            text = text.replace(self._key, "[key]")
        return f" {printable(text, 160)!r}" if text else ""


class AskedModel:
    """The model that ``URL#MODEL`` names, asked for text; ``what`` is what messages call the setting.

    Raises:
        SettingsError: ``where`` is not ``URL#MODEL``, or the key cannot be one.
        ProbeError: the address is not http(s).
    """

    def __init__(self, where: str, what: str, config: EndpointConfig) -> None:
        url, _, self.model = where.partition("#")
        if not self.model:
            raise SettingsError(
                f"{what} {printable(where, 120)!r}: give URL#MODEL, such as http://localhost:8000/v1#qwen-7b"
            )
        self.config = config
        self._service = ChatCompletions(url, os.environ.get(config.api_key_env, "").strip())
        self.shown = self._service.shown

    def answer(self, what: str, *messages: tuple[str, str]) -> str:
        """The answer to ``messages``, each (role, text); ``what`` is what it is, for messages.

        Raises:
            UnanswerableError: there is none, called as often and long as the settings say.
        """
        request = {
            **self.config.parameters,
            "model": self.model,
            "messages": [{"role": role, "content": text} for role, text in messages],
        }
        return persistent(lambda seconds: self._service.answer(request, seconds), self.config, what)


def _cut(connected: socket.socket, late: threading.Event) -> None:
    late.set()
    with suppress(OSError):
        socket.socket.shutdown(connected, socket.SHUT_RDWR)


def _seconds(header: str | None) -> float:
    """Of a Retry-After header that gives seconds; 0 for a date."""
    return float(header) if header is not None and header.isdecimal() else 0.0
