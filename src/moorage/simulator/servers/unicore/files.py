"""Files below a storage's root: confined to it, described and changed as the server does."""

import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from .answers import Failure, date

root_page = 10_000
page = 50_000


def decode(raw: str) -> str:
    """
    The path of a file from the URL: percent-decoded twice, backslashes are slashes, no empty parts.

    Source: UNICORE-EU/unicorex Files, and the framework below it, which decodes a first time.
    """
    return normal(unquote(unquote(raw)))


def normal(path: str) -> str:
    """Relative, with single forward slashes."""
    text = path.replace("\\", "/")
    return "/".join(part for part in text.split("/") if part and part != ".")


def inside(root: Path, relative: str) -> Path:
    """
    The path below `root`. The real server relies on Unix permissions; here the way out is closed.

    Raises:
        Failure: 403 for a path that leaves the root, also through a symbolic link.
    """
    if "\0" in relative or ".." in relative.split("/"):
        raise Failure(403)
    path = root / relative if relative else root
    try:
        if not path.resolve().is_relative_to(root.resolve()):
            raise Failure(403)
    except (OSError, RuntimeError) as error:
        raise Failure(500, f"java.io.IOException: {relative[:200]}") from error
    return path


def existing(root: Path, relative: str) -> Path:
    path = inside(root, relative)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Failure(404) from error
    except OSError as error:
        raise Failure(500, f"java.io.IOException: {error.strerror}: {relative[:200]}") from error
    return path


def properties(path: Path, owner: str, group: str) -> dict[str, Any]:
    """What a listing says about one file. `lastAccessed` is the time of modification."""
    info = path.stat()
    return {
        "isDirectory": stat.S_ISDIR(info.st_mode),
        "size": info.st_size,
        "lastAccessed": date(int(info.st_mtime)),
        "owner": owner,
        "group": group,
        "permissions": stat.filemode(info.st_mode)[1:],
    }


def listing(root: Path, relative: str, owner: str, group: str, offset: int, num: int) -> dict[str, dict[str, Any]]:
    """Keys are paths from the storage root, directories with a trailing slash; not sorted."""
    content = {}
    for number, child in enumerate(_children(inside(root, relative))):
        if offset <= number < offset + num:
            key = "/" + "/".join(filter(None, (relative, child.name)))
            try:
                content[key + ("/" if child.is_dir() else "")] = properties(child, owner, group)
            except OSError:
                continue  # gone or a dangling link since we looked
    return content


def _children(directory: Path) -> Iterator[Path]:
    with os.scandir(directory) as entries:
        for entry in entries:
            yield directory / entry.name


def make_directory(path: Path) -> None:
    """An existing directory is fine; a file in the way is 500."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(
            500, f"Could not create directory: java.io.IOException: {error.strerror}: /{path.name}"
        ) from error


def remove(root: Path, relative: str) -> None:
    """`rm -rf`: what is missing is fine; an empty path wipes the root's content."""
    path = inside(root, relative)
    if not relative:
        for child in _children(path):
            _remove_tree(child)
    else:
        _remove_tree(path)


def _remove_tree(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def rename(root: Path, source: str, target: str) -> None:
    try:
        inside(root, source).rename(_with_parents(inside(root, target)))
    except OSError as error:
        raise _refused("mv", source, target, error) from error


def copy(root: Path, source: str, target: str) -> None:
    origin, copied = inside(root, source), inside(root, target)
    try:
        if origin.is_dir():
            shutil.copytree(origin, copied, dirs_exist_ok=True)
        else:
            shutil.copy(origin, _with_parents(copied))
    except (OSError, shutil.Error) as error:
        raise _refused("cp", source, target, error) from error


def _with_parents(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _refused(command: str, source: str, target: str, error: Exception) -> Failure:
    reason = getattr(error, "strerror", None) or type(error).__name__
    return Failure(
        500,
        "java.io.IOException: TSI_FAILED: Command "
        f"'{command} {source[:100]} {target[:100]}' failed with code 1: {reason}",
    )


def change_mode(path: Path, permissions: str) -> str:
    """Apply `rwxr-x---` or its first one or two triples; the verdict is `OK` or says what is wrong."""
    mode = parse_permissions(permissions, stat.S_IMODE(path.stat().st_mode))
    if mode is None:
        return f"FAILED: java.lang.IllegalArgumentException: invalid permissions {permissions[:50]}"
    try:
        path.chmod(mode)
    except OSError as error:
        return f"FAILED: java.io.IOException: {error.strerror}"
    return "OK"


def parse_permissions(text: str, current: int) -> int | None:
    if not re.fullmatch(r"([r-][w-][x-]){1,3}", text):
        return None
    mode = current
    for triple, shift in zip((text[0:3], text[3:6], text[6:9]), (6, 3, 0), strict=True):
        if triple:
            bits = sum(bit for bit, letter in zip((4, 2, 1), triple, strict=True) if letter != "-")
            mode = mode & ~(7 << shift) | bits << shift
    return mode


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """
    First byte and length of `bytes=a-b`, `a-` or `-n`; None without a header. An end beyond the file is cut.

    Raises:
        Failure: 416 with a text for anything else, several ranges included.
    """
    if header is None:
        return None
    found = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", header.strip())
    if found and (found[1] or found[2]):
        if not found[1]:
            first = max(0, size - int(found[2]))
            return first, size - first
        first, last = int(found[1]), int(found[2]) if found[2] else size - 1
        if not found[2] or last >= first:
            return first, max(0, min(last, size - 1) - first + 1)
    raise Failure(416, f"java.lang.IllegalArgumentException: Range '{header[:100]}' is not valid")


def verdicts(path: Path, changes: Mapping[str, Any], metadata: dict[str, Any]) -> dict[str, str]:
    """Carry out a JSON PUT on a file, one verdict per key."""
    said = {}
    for key, value in changes.items():
        if key in ("permissions", "unixPermissions"):
            said[key] = change_mode(path, str(value))
        elif key == "metadata" and isinstance(value, dict):
            metadata.clear()
            metadata.update(value)
            said[key] = "OK"
        elif key == "group":
            said[key] = "OK"
        else:
            said[key] = "Property not found or cannot be modified!"
    return said
