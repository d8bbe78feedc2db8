"""What the other machine is asked: how it stands, pieces of files, and to stop.

A script of its own, which needs Python's standard library and nothing else:

    python -I depot.py look FOLDER           one JSON: worker, runs, files with sizes and hashes, disk, GPUs
    python -I depot.py give FOLDER           JSON [[path, offset, length], ...] in, these bytes out
    python -I depot.py take FOLDER PATH AT SHA256   append what is read to PATH from AT on; JSON {size, whole} out
    python -I depot.py have FOLDER           JSON {path: sha256} in, JSON {path: size so far, or "whole"} out
    python -I depot.py leftovers FOLDER      JSON of all files of runs that have not ended, with their hashes
    python -I depot.py unpack FOLDER         unpack the package's archive
    python -I depot.py stop FOLDER           ask the worker to end; `kill` ends it and all that it started
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

RUNS = "runs"
GROWING = ("log.txt", "diagnostics.jsonl")
TABLES = ("summary.json", "summary.md", "report.html")
TAIL = 6000
_ENDED = ("done", "rejected")
_PART = ".part"


def look(folder: Path) -> dict[str, Any]:
    """How the launch in `folder` stands."""
    log = folder / "log.txt"
    disk = shutil.disk_usage(folder)
    return {
        "now": time.time(),
        "alive": held(folder),
        "worker": _state(folder),
        "disk": {"free": disk.free, "total": disk.total},
        "gpus": _gpus(),
        "log": _size(log),
        "tail": _tail(log),
        "moved": _moved(folder),
        "runs": [_run(path.parent, folder) for path in sorted((folder / RUNS).glob("*/*/*/run.json"))],
        "study": [_file(path, folder) for name in TABLES for path in sorted((folder / RUNS).glob(f"*/{name}"))],
    }


def held(folder: Path) -> bool:
    """Whether a worker, or what it started, holds the lock."""
    try:
        with (folder / "worker.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _state(folder: Path) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = json.loads((folder / "worker.json").read_text())
    except (OSError, ValueError):
        return None
    return state


def _run(run: Path, folder: Path) -> dict[str, Any]:
    """A run: its status, and the files that are worth bringing home, with their hashes once it has ended."""
    try:
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
        status, artifacts, times = record["status"], record.get("artifacts", {}), record.get("times") or [{}]
    except (OSError, ValueError, KeyError):
        return {"run": _name(run, folder), "status": "unreadable", "files": []}
    settled = times[-1].get("ended") or not held(folder)  # the record is written once more after the results
    if status not in _ENDED or not settled:
        status = status if status not in _ENDED else "running"
        there = [run / name for name in ("run.json", *GROWING) if (run / name).is_file()]
        files = [_file(path, folder, hashed=path.name == "run.json") for path in there]
        return {"run": _name(run, folder), "status": status, "error": record.get("error"), "files": files}
    files = [_file(run / name, folder) for name in ("run.json", "log.txt") if (run / name).is_file()]
    for path, sha256 in artifacts.items():
        files.append({"path": _name(run / path, folder), "size": _size(run / path), "sha256": sha256})
    return {"run": _name(run, folder), "status": status, "files": files}


def leftovers(folder: Path) -> list[dict[str, Any]]:
    """Every file of the runs that have not ended, with its hash: what a resume elsewhere needs."""
    files = []
    for record in sorted((folder / RUNS).glob("*/*/*/run.json")):
        if json.loads(record.read_text(encoding="utf-8"))["status"] not in _ENDED:
            files += [_file(path, folder) for path in sorted(record.parent.rglob("*")) if path.is_file()]
    return files


def _file(path: Path, folder: Path, *, hashed: bool = True) -> dict[str, Any]:
    entry: dict[str, Any] = {"path": _name(path, folder), "size": _size(path)}
    return {**entry, "sha256": sha256_of(path)} if hashed else entry


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, _size(path) - TAIL))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def _moved(folder: Path) -> float:
    """When the log or anything of the runs last changed: work that moves leaves traces."""
    newest = 0.0
    for place in (folder / "log.txt", *(folder / RUNS).rglob("*")):
        try:
            newest = max(newest, place.stat().st_mtime)
        except OSError:
            continue
    return newest


def _gpus() -> list[int] | None:
    """The utilization of each GPU in percent; None where there is none."""
    asked = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout
        return [int(line) for line in said.split()] or None
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def inside(folder: Path, path: str) -> Path:
    """`path` below `folder`; raises `ValueError` for one that leads out of it."""
    place = Path(os.path.normpath(folder / path))
    if not place.is_relative_to(folder) or place == folder:
        raise ValueError(f"{path} is not inside {folder}")
    return place


def give(folder: Path) -> None:
    """Write the asked pieces of files to standard output, one after another."""
    for path, offset, length in json.load(sys.stdin):
        with inside(folder, path).open("rb") as file:
            file.seek(offset)
            while length > 0:
                piece = file.read(min(length, 1 << 20))
                if not piece:
                    sys.exit(f"{path} became shorter")
                sys.stdout.buffer.write(piece)
                length -= len(piece)
    sys.stdout.buffer.flush()


def have(folder: Path) -> dict[str, int | str]:
    """By path, `whole` for a file that is there as it should be, else how many bytes of it have arrived."""
    found: dict[str, int | str] = {}
    for path, sha256 in json.load(sys.stdin).items():
        place = inside(folder, path)
        whole = place.is_file() and sha256_of(place) == sha256
        found[path] = "whole" if whole else _size(place.with_name(place.name + _PART))
    return found


def take(folder: Path, path: str, at: int, sha256: str) -> dict[str, Any]:
    """Append standard input to the unfinished file; whole, checked by its hash, it gets its name."""
    place = inside(folder, path)
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(place.name + _PART)
    with part.open("r+b" if part.exists() else "wb") as file:
        file.truncate(at)
        file.seek(at)
        shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
        file.flush()
        os.fsync(file.fileno())
    if sha256_of(part) != sha256:
        return {"size": _size(part), "whole": False}
    part.replace(place)
    return {"size": _size(place), "whole": True}


def unpack(folder: Path) -> None:
    """Unpack the package, unless this very archive is unpacked already."""
    archive, unpacked, fresh = folder / "package.tar.gz", folder / "package", folder / ".package"
    mark = sha256_of(archive)
    if (unpacked / ".sha256").is_file() and (unpacked / ".sha256").read_text() == mark:
        return
    shutil.rmtree(fresh, ignore_errors=True)
    with tarfile.open(archive) as packed:
        # Python 3.11.0 to 3.11.3 have no filter; the archive is ours, and its hash has been compared.
        if hasattr(tarfile, "data_filter"):
            packed.extractall(fresh, filter="data")
        else:
            packed.extractall(fresh)
    (fresh / ".sha256").write_text(mark)
    shutil.rmtree(unpacked, ignore_errors=True)
    fresh.replace(unpacked)


def stop(folder: Path, number: int) -> None:
    """Signal the worker, or, to kill, everything in its session."""
    state = _state(folder)
    if not held(folder) or state is None:
        return
    with suppress(ProcessLookupError, PermissionError):
        os.kill(state["pid"], number) if number == signal.SIGTERM else os.killpg(state["pid"], number)


def main(task: str, folder: Path, *rest: str) -> None:
    """Do one task and print its answer as one line of JSON."""
    if task == "look":
        print(json.dumps(look(folder)))
    elif task == "leftovers":
        print(json.dumps(leftovers(folder)))
    elif task == "give":
        give(folder)
    elif task == "have":
        print(json.dumps(have(folder)))
    elif task == "take":
        print(json.dumps(take(folder, rest[0], int(rest[1]), rest[2])))
    elif task == "unpack":
        unpack(folder)
    elif task == "stop":
        stop(folder, signal.SIGTERM)
    elif task == "kill":
        stop(folder, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1], Path(os.path.normpath(sys.argv[2])), *sys.argv[3:])
