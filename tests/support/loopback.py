"""An ssh server on the loopback address, with its own port, host key and login key in a temporary folder."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")


@dataclass(frozen=True)
class Loopback:
    """The server: its port, and what ssh has to be told to get in."""

    folder: Path
    port: int
    pid: int

    @property
    def options(self) -> list[str]:
        """For `ssh -o`."""
        return [
            f"IdentityFile={self.folder}/login",
            f"UserKnownHostsFile={self.folder}/known_hosts",
            "IdentitiesOnly=yes",
        ]

    def cut(self) -> int:
        """Cut all open connections, as a lost network does; how many there were."""
        children = subprocess.run(["pgrep", "-P", str(self.pid)], capture_output=True, text=True).stdout.split()
        for child in children:
            os.kill(int(child), signal.SIGKILL)
        return len(children)


@contextmanager
def sshd(folder: Path, shell_noise: str = "") -> Iterator[Loopback]:
    """A running server; it ends with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("host", "login"):
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(key, check=True, stdin=subprocess.DEVNULL)
    shutil.copy(folder / "login.pub", folder / "authorized_keys")
    (folder / "authorized_keys").chmod(0o600)
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    host = (folder / "host.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host[0]} {host[1]}\n")
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "authorized_keys",
        "PidFile": folder / "pid",
        "StrictModes": "no",
        "PasswordAuthentication": "no",
        "UsePAM": "no",
        "PermitRootLogin": "yes",
        "MaxStartups": "100",
    }
    (folder / "config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    Path("/run/sshd").mkdir(exist_ok=True)
    log = (folder / "log").open("wb")
    server = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(folder / "config")], stderr=log)
    try:
        for _ in range(100):
            with closing(socket.socket()) as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield Loopback(folder, port, server.pid)
    finally:
        server.terminate()
        server.wait()
        log.close()
