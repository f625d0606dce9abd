"""Run under the name of a program, with a socket: has tests/command_server.py run that program, and ends as it ends."""

from __future__ import annotations

import json
import os
import socket
import sys


def main(address: str, words: list[str]) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [b"!"], [0, 1, 2])
        asked = {"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}  # noqa: PTH109  (quick to load)
        connection.sendall(json.dumps(asked).encode() + b"\n")
        answer = connection.recv(16)
    if not answer:
        sys.exit("the command server is gone")
    status = int(answer)
    if status < 0:
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
