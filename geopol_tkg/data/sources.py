"""Where event files are: files, folders, globs, object stores, the bundled sample."""

import fnmatch
import glob
import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import fs

from geopol_tkg.errors import DataError

SAMPLE = "sample"
_SUFFIXES = (".parquet", ".csv", ".tsv", ".txt", ".zip", ".csv.gz", ".tsv.gz", ".txt.gz")
_REMOTE = ("s3://", "gs://", "gcs://", "file://")
_WILDCARDS = "*?["
_HIDDEN = (".", "_")  # files and folders of editors, notebooks and jobs that are not done


@dataclass(frozen=True)
class SourceFile:
    """A file to read, wherever it is."""

    path: str
    size: int
    open: Callable[[], BinaryIO]

    @property
    def suffix(self) -> str:
        """The last suffix in lower case, with its dot."""
        return PurePosixPath(self.path).suffix.lower()

    def sha256(self) -> str:
        """Hex digest of the bytes."""
        digest = hashlib.sha256()
        with self.open() as file:
            while block := file.read(1 << 22):
                digest.update(block)
        return digest.hexdigest()


def find_files(sources: Sequence[str]) -> list[SourceFile]:
    """Event files behind the sources, each once whatever leads to it, in the order given; folders by name.

    Raises:
        DataError: a source does not exist, or holds no event file.
    """
    found: dict[str, SourceFile] = {}  # by the address without links
    for source in sources:
        files = list(_find(source))
        if not files:
            raise DataError(f"{source}: no event files here; known are {', '.join(_SUFFIXES)}")
        for file in files:
            found.setdefault(_real(file.path), file)
    return list(found.values())


def _real(path: str) -> str:
    """Where a file is, behind all links; addresses of object stores as they are."""
    local = path.removeprefix("file://")
    return local if local.startswith(_REMOTE) else os.path.realpath(local)


def _find(source: str) -> Iterator[SourceFile]:
    if source == SAMPLE:
        return _sample_files()
    if source.startswith(_REMOTE):
        return _remote_files(source)
    if Path(source).exists():
        return _local_files([Path(source)])
    if any(mark in source for mark in _WILDCARDS):
        return _local_files([Path(match) for match in sorted(glob.glob(source, recursive=True))])
    raise DataError(f"{source}: does not exist; give event files, a folder, a glob or the word sample")


def _sample_files() -> Iterator[SourceFile]:
    folder = resources.files("geopol_tkg.data.sample")
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".parquet"):
            content = entry.read_bytes()
            yield SourceFile(f"{SAMPLE}/{entry.name}", len(content), partial(io.BytesIO, content))


def _local_files(paths: list[Path]) -> Iterator[SourceFile]:
    for path in paths:
        for file in _inside(path) if path.is_dir() else [path]:
            status = file.stat()
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"{file}: not a regular file, which is read twice; write the events to one first")
            yield SourceFile(str(file), status.st_size, partial(_open_local, file))


def _inside(folder: Path) -> list[Path]:
    """Event files in a folder and the folders in it, by name; links are followed."""
    found: list[Path] = []
    entered = {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        found += [Path(parent, name) for name in names if _is_event_file(name)]
        folders[:] = [name for name in folders if not name.startswith(_HIDDEN)]
        real = {name: os.path.realpath(os.path.join(parent, name)) for name in folders}
        folders[:] = [name for name in folders if real[name] not in entered]
        entered |= set(real.values())
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def _open_local(path: Path) -> BinaryIO:
    return path.open("rb")


def _is_event_file(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES) and not name.startswith(_HIDDEN)


def _remote_files(source: str) -> Iterator[SourceFile]:
    scheme, _, address = source.partition("://")
    key, mark, query = address.partition("?")  # options such as ?endpoint_override=
    base = _without_wildcards(key)
    try:
        system, root = fs.FileSystem.from_uri(f"{scheme}://{base}{mark}{query}")
        infos = _remote_infos(system, root)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{source}: cannot be read ({_one_line(error)}); check address and access") from error
    for info in infos:
        exact = info.path == root
        wanted = base == key or fnmatch.fnmatchcase(info.path, key)
        folders = PurePosixPath(info.path).relative_to(root).parts[:-1]
        hidden = any(name.startswith(_HIDDEN) for name in folders)
        if exact or (wanted and not hidden and _is_event_file(PurePosixPath(info.path).name)):
            yield SourceFile(f"{scheme}://{info.path}", info.size, partial(system.open_input_file, info.path))


def _without_wildcards(key: str) -> str:
    """The longest folder that a glob names literally."""
    parts = key.split("/")
    literal = next((i for i, part in enumerate(parts) if any(c in part for c in _WILDCARDS)), len(parts))
    return "/".join(parts[:literal])


def _remote_infos(system: Any, root: str) -> list[Any]:
    info = system.get_file_info(root)
    if info.type == fs.FileType.File:
        return [info]
    entries = system.get_file_info(fs.FileSelector(root, recursive=True))
    return sorted((e for e in entries if e.type == fs.FileType.File), key=lambda entry: entry.path)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
