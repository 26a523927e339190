"""A real daemon in a process of its own, with a home of its own, for tests that need one."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from witsd.supervise.identity import kill_marked

ROOT = Path(__file__).resolve().parents[2]
#: Far more than a start or a stop takes on a slow, busy machine.
PATIENCE_S = 60.0
#: What would let the machine's own settings into a test.
_FOREIGN = ("WITSD_", "OPENAI_", "OLLAMA_", "ANTHROPIC_", "XDG_", "NOTIFY_", "LISTEN_", "CREDENTIALS_")


class Daemon:
    """``python -m witsd.daemon`` under a fresh ``WITSD_HOME`` on a short path.

    ``start`` returns when the daemon has said READY=1 on its notify socket. ``env`` is what a client
    (the command line, ``nc``, an SDK program) needs to find it; ``HOME`` in it is empty and private.
    """

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="witsd-", dir="/tmp"))
        self.user_home = self.home / "user"
        self.user_home.mkdir()
        self.socket = self.home / "witsd.sock"
        self.log_path = self.home / "daemon.out"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN)}
        paths = (str(ROOT), str(ROOT / "clients/python"), kept.get("PYTHONPATH", ""))
        self.env: dict[str, str] = {
            **kept,
            "HOME": str(self.user_home),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "WITSD_HOME": str(self.home),
            "WITSD_LISTEN_HTTP": "127.0.0.1:0",
            **(settings or {}),
        }
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The running daemon's process id."""
        assert self.process is not None, "the daemon has not been started"
        return self.process.pid

    def log(self) -> str:
        """What the daemon has written so far, over all its starts."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def start(self, *args: str, module: str = "witsd.daemon") -> None:
        """Start it and wait until it is ready; ``RuntimeError`` with its output when it ends instead.

        ``module`` is what is run with ``args``; the command line may stand there, as it becomes the daemon.
        """
        assert self.process is None or self.process.poll() is not None, "it is running already"
        where = self.home / "notify"
        where.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, self.log_path.open("ab") as out:
            notify.bind(str(where))
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *args],
                env={**self.env, "NOTIFY_SOCKET": str(where)},
                cwd=self.user_home,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
            self._wait_ready(notify)

    def _wait_ready(self, notify: socket.socket) -> None:
        pidfd = os.pidfd_open(self.pid)
        deadline = time.monotonic() + PATIENCE_S
        try:
            while (left := deadline - time.monotonic()) > 0:
                readable = select.select([notify.fileno(), pidfd], [], [], left)[0]
                # Read before looking at the pid: a daemon that is ready and then dies was ready.
                if notify.fileno() in readable:
                    if "READY=1" in notify.recv(4096).decode().splitlines():
                        return
                elif readable:
                    raise RuntimeError(f"the daemon ended with {self.process_status()}:\n{self.log()}")
            raise RuntimeError(f"the daemon was not ready within {PATIENCE_S:g} s:\n{self.log()}")
        except RuntimeError:
            self.kill()
            raise
        finally:
            os.close(pidfd)

    def process_status(self) -> int | None:
        """The exit status once it has ended (negative: the signal), waited for briefly; else None."""
        assert self.process is not None
        try:
            return self.process.wait(1)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait until it has ended by itself; its exit status."""
        assert self.process is not None
        return self.process.wait(timeout_s)

    def stop(self, timeout_s: float = PATIENCE_S) -> int:
        """End it as a service manager does, with SIGTERM; its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL, as a crash would: nothing is said, nothing is closed."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE_S)

    def restart(self) -> None:
        """Stop it if it runs, and start it again on the same home."""
        if self.process is not None:
            self.stop()
        self.start()

    def call(self, method: str, /, **params: Any) -> Any:
        """One request over the Unix socket, without any client library; an error fails the test."""
        answer = self.ask({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        assert "result" in answer, f"{method}: {answer}"
        return answer["result"]

    def ask(self, request: Any) -> Any:
        """One line in, one line out, whatever it says."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
            stream.settimeout(PATIENCE_S)
            stream.connect(str(self.socket))
            stream.sendall(json.dumps(request).encode() + b"\n")
            with stream.makefile("rb") as lines:
                return json.loads(lines.readline())

    @property
    def http(self) -> str:
        """``127.0.0.1:PORT``, where it listens for HTTP and WebSocket."""
        return str(self.call("system/status")["listening"]["http"])

    def cli(
        self,
        *args: str,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout_s: float = PATIENCE_S,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``witsd ARGS`` as a person would, with standard input empty unless ``stdin`` is given."""
        # With `input` subprocess makes the pipe itself and refuses a `stdin`.
        source: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        return subprocess.run(
            [sys.executable, "-m", "witsd.cli.main", *args],
            env={**self.env, **(env or {})},
            cwd=cwd or self.user_home,
            **source,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def remove(self) -> None:
        """End what runs and delete the home."""
        if self.process is not None and self.process.poll() is None:
            try:
                self.stop(20)
            except subprocess.TimeoutExpired:
                self.kill()
        # A killed daemon leaves to its next start what detached itself; there is none.
        kill_marked(str((self.home / "witsd.db").resolve()))
        shutil.rmtree(self.home, ignore_errors=True)

    def remove_after_showing(self) -> None:
        """``remove``, with the log printed first, which pytest shows for a test that failed."""
        log = self.log()
        if log:
            print(log)
        self.remove()
