"""What travels to the other machine: the package, its locked requirements, the study and its local input files."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

import latentwire
from latentwire.errors import UserError
from latentwire.runs.identity import file_sha256
from latentwire.studies import templates

WORK, STUDY, PACKAGE = "work", "study.yaml", "package.tar.gz"
REQUIREMENTS = "requirements"
_TOKEN = re.compile(r"[^\s,=:@'\"\[\]{}]+")
_CLASS = re.compile(r"^([A-Za-z_][\w.]*):[A-Za-z_]\w*")
_DATA = ("*.json", "*.jsonl", "*.safetensors", "*.yaml")
_LEFT_OUT = ("__pycache__", ".git", ".venv")


@dataclass(frozen=True)
class Piece:
    """A file that travels: where it goes below the launch's folder, and its bytes or where they are.

    Attributes:
        source: A file here, or the content itself.
    """

    path: str
    source: Path | bytes
    size: int
    sha256: str

    @classmethod
    def of(cls, path: str, source: Path | bytes) -> Piece:
        """The piece, measured and hashed."""
        if isinstance(source, bytes):
            return cls(path, source, len(source), hashlib.sha256(source).hexdigest())
        return cls(path, source, source.stat().st_size, file_sha256(source))


@dataclass(frozen=True)
class Payload:
    """Everything that travels.

    Attributes:
        study: The study's name.
        changes: `--set` changes with the paths that they have there.
        environment: A hash of the requirements: launches with equal ones share an environment.
        inputs: The local files and folders that the study names.
    """

    study: str
    pieces: tuple[Piece, ...]
    changes: tuple[str, ...]
    environment: str
    inputs: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """What identifies the study and its inputs. A mended package goes on with the same launch."""
        parts = [
            f"{piece.path} {piece.sha256}" for piece in self.pieces if piece.path.startswith((WORK, "inputs/"))
        ]
        return hashlib.sha256("\n".join([*parts, *self.changes]).encode()).hexdigest()


def gather(study: str, changes: Sequence[str] = (), preset: str | None = None, *, extras: bool = False) -> Payload:
    """Check the study and collect what it needs.

    Args:
        extras: Also the requirements of lm-eval's tasks, GGUF files and hub datasets.

    Raises:
        UserError: The study cannot be carried out, or names a file in a way that has no counterpart there.
    """
    from latentwire.studies import loading  # needs PyTorch; following a launch does not

    made = loading.load(study, changes, preset)
    path = Path(study)
    text = path.read_text(encoding="utf-8-sig") if path.is_file() else templates()[study]
    raw = [yaml.safe_load(text), [yaml.safe_load(change.partition("=")[2]) for change in changes]]
    places: dict[str, str] = {}
    for token in dict.fromkeys(token for each in _texts(raw) for token in _tokens(each)):
        if there := _place(token):
            places[token] = there
    renamed = {token: there for token, there in places.items() if token != there}
    pieces = [Piece.of(f"{WORK}/{STUDY}", _renamed(text, renamed).encode())]
    for token, there in places.items():
        pieces += _pieces(Path(token).expanduser(), f"{WORK}/{there}")
    locked, constraints = requirements(extras)
    pieces.append(Piece.of(f"{REQUIREMENTS}/locked.txt", locked.encode()))
    pieces.append(Piece.of(f"{REQUIREMENTS}/constraints.txt", constraints.encode()))
    pieces.append(Piece.of(PACKAGE, package()))
    return Payload(
        study=made.name,
        pieces=tuple({piece.path: piece for piece in pieces}.values()),
        changes=tuple(_renamed(change, renamed) for change in changes),
        environment=hashlib.sha256((locked + constraints).encode()).hexdigest()[:12],
        inputs=tuple(places),
    )


def _texts(value: Any) -> Iterator[str]:
    """Every text in nested values, keys included."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _texts(key)
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, str):
        yield value


def _tokens(text: str) -> Iterator[str]:
    """What may be a path in a text: the whole of it, or a part of a wire's specification or of an own class."""
    if own := _CLASS.match(text):
        module = own[1].split(".")
        yield "/".join(module) + ".py" if len(module) == 1 else module[0]
    if _exists(text):
        yield text
    else:
        yield from _TOKEN.findall(text)


def _exists(text: str) -> bool:
    try:
        return bool(text) and Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False


def _place(token: str) -> str | None:
    """Where a local path goes: a relative one stays as it is, any other gets a folder of its own."""
    if not _exists(token):
        return None
    path = Path(token).expanduser()
    if path.resolve() == Path.cwd() or path.resolve() in Path.cwd().parents:
        return None  # a dot or a slash in a text
    data = any(next(path.glob(pattern), None) for pattern in (*_DATA, "*.py"))
    if path.is_dir() and "/" not in token and not data:
        return None  # a folder that happens to be called like a word of the study
    if not Path(token).is_absolute() and ".." not in path.parts and not token.startswith("~"):
        return token
    return f"inputs/{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}/{path.name}"


def _pieces(source: Path, there: str) -> Iterator[Piece]:
    if source.is_file():
        yield Piece.of(there, source)
        return
    for file in sorted(source.rglob("*")):
        parts = file.relative_to(source).parts
        if file.is_file() and not any(part in _LEFT_OUT or part.startswith(".") for part in parts):
            yield Piece.of(f"{there}/{'/'.join(parts)}", file)


def _renamed(text: str, places: dict[str, str]) -> str:
    for token in sorted(places, key=len, reverse=True):
        text = re.sub(rf"(?<![\w./~-]){re.escape(token)}(?![\w/-])", places[token], text)
    return text


def package() -> bytes:
    """This package's files as an archive: equal files, equal bytes."""
    root = Path(latentwire.__file__).parent
    buffer = io.BytesIO()
    zipped = gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1, mtime=0)
    with zipped, tarfile.open(fileobj=zipped, mode="w") as archive:
        for file in sorted(root.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                entry = tarfile.TarInfo(f"latentwire/{file.relative_to(root).as_posix()}")
                entry.size, entry.mode = file.stat().st_size, 0o644
                with file.open("rb") as content:
                    archive.addfile(entry, content)
    return buffer.getvalue()


def requirements(extras: bool = False) -> tuple[str, str]:
    """The locked requirements and the constraints.

    From a checkout they are its locked files, with hashes. Installed from elsewhere the package has none: then
    they are the versions of this very environment.
    """
    checkout = Path(latentwire.__file__).parents[2]
    locked, constraints = checkout / "locked" / ("dev.txt" if extras else "run.txt"), checkout / "constraints.txt"
    if locked.is_file() and constraints.is_file():
        return locked.read_text(encoding="utf-8"), constraints.read_text(encoding="utf-8")
    versions = _closure(["latentwire"], extras)
    torch = versions.pop("torch", None)
    if torch is None:
        raise UserError(
            "launch: found no installed torch here, expected one whose version the other machine gets."
        )
    drop = re.compile(r"^(triton|nvidia-|cuda-|latentwire$)")
    lines = [f"{name}=={version}" for name, version in sorted(versions.items()) if not drop.match(name)]
    return "\n".join(lines) + "\n", f"torch=={torch.partition('+')[0]}\n"


def _closure(names: list[str], extras: bool) -> dict[str, str]:
    """Versions of the installed packages that `names` need, directly or not."""
    from packaging.requirements import Requirement

    found: dict[str, str] = {}
    while names:
        name = re.sub(r"[-_.]+", "-", names.pop()).lower()
        if name in found:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        found[name] = distribution.version
        wanted = ("", "gguf", "harness") if extras and name == "latentwire" else ("",)
        for line in distribution.requires or ():
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in wanted):
                names.append(needed.name)
    return found
