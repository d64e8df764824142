"""The files of a directory and of those below it; what is neither file nor directory is refused, not skipped."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterator
from typing import Any

from fastshap.errors import InvalidArgumentError
from fastshap.extras import needed

MANIFEST = "_fastshap_manifest.json"  # lies in a directory that a job wrote


def listed(system: Any, root: str) -> list[str]:
    """Paths of files, in order; without hidden ones, those that begin with an underscore, and outputs of jobs.

    Raises:
        InvalidArgumentError: a link that leads nowhere or to a directory that is listed already, a pipe or device, or a name
            that is no UTF-8.
        OSError: a directory that cannot be read.
    """
    local = isinstance(system, needed("pyarrow.fs", "tables").LocalFileSystem)
    return sorted(_walked(root) if local else _selected(system, root))


def _walked(root: str) -> Iterator[str]:
    """On a disk, where links may lead in circles: each directory is entered once."""
    seen: dict[tuple[int, int], str] = {}
    left = [root]
    while left:
        directory = left.pop()
        about = os.stat(directory)
        before = seen.setdefault((about.st_dev, about.st_ino), directory)
        if before != directory:
            raise InvalidArgumentError(
                f"{directory} is the same directory as {before}: a link leads to it, and its rows would be read twice. Remove "
                "the link."
            )
        names = os.listdir(directory)
        for name in names:
            path = f"{directory}/{name}"
            if name.startswith((".", "_")):
                continue
            kind = _kind_of(path)
            if kind == stat.S_IFDIR:
                left.append(path)
            elif MANIFEST not in names:
                yield checked_path(path)


def _kind_of(path: str) -> int:
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        raise InvalidArgumentError(f"{path} is a link that leads nowhere. Mend it, or take it away.") from None
    if kind not in (stat.S_IFREG, stat.S_IFDIR):
        raise InvalidArgumentError(f"{path} is neither a file nor a directory. Take it away.")
    return kind


def _selected(system: Any, root: str) -> list[str]:
    fs = needed("pyarrow.fs", "tables")
    inside = system.get_file_info(fs.FileSelector(root, recursive=True))
    paths = [one.path for one in inside if one.type == fs.FileType.File]
    outputs = {posixpath.dirname(path) for path in paths if posixpath.basename(path) == MANIFEST}
    return [path for path in paths if not _hidden(path[len(root) :]) and posixpath.dirname(path) not in outputs]


def checked_path(path: str) -> str:
    """The path.

    Raises:
        InvalidArgumentError: it is no UTF-8.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError(f"The name {path!r} is no UTF-8; rename it.") from None
    return path


def _hidden(path: str) -> bool:
    return any(part.startswith((".", "_")) for part in path.split("/"))
