"""What the calls on storages, files and transfers do. Source: UNICORE-EU/unicorex Storages, Files."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from . import documents, files
from .answers import Answer, Failure, FilePart, created, json_answer, no_content, type_bytes, type_html, type_json
from .calls import modify, page, require, require_owner, require_user, shown
from .routes import Call, Route, Routes, wanted_type
from .site import ByteTransfer, Storage, Transfer, new_id


async def get_storages(call: Call) -> Answer:
    """Working directories are hidden unless `filter=all`."""
    everything = call.query.get("filter") == "all"
    visible = (s for s in call.site.storages.values() if everything or not s.id.endswith("-uspace"))
    return page(call, "storages", visible)


async def create_storage(call: Call) -> Answer:
    require_user(call)
    raise Failure(500, "Could not create storage: java.lang.Exception: No storage factory available")


def _storage(call: Call) -> Storage:
    storage = call.site.storages.get(call.args[0])
    if storage is None:
        raise Failure(404)
    return storage


async def get_storage(call: Call) -> Answer:
    storage = _storage(call)
    require(call, storage, "read")
    return shown(call, documents.storage(call.site, storage, call.caller, call.base))


async def put_storage(call: Call) -> Answer:
    storage = _storage(call)

    def umask(text: str) -> None:
        storage.umask = text[:4]

    def description(text: str) -> None:
        storage.description = text[:256]

    return await modify(call, storage, {"umask": umask, "description": description})


async def delete_storage(call: Call) -> Answer:
    storage = _storage(call)
    require_owner(call, storage)
    del call.site.storages[storage.id]
    return no_content()


def _root(call: Call, storage: Storage) -> Path:
    """The directory the caller sees; below it Unix permissions decide, not the storage's access list."""
    caller = call.caller
    if caller.uid is None:
        raise Failure(403)
    return call.site.root(storage, call.site.uids(caller), caller.uid)


async def act_on_storage(call: Call) -> Answer:
    storage, action = _storage(call), call.args[1]
    if action not in ("rename", "copy"):
        raise Failure(404)
    root = _root(call, storage)
    wish = await call.json(f"Could not {action}")
    source, target = wish.get("from"), wish.get("to")
    if not isinstance(source, str) or not isinstance(target, str) or not source or not target:
        raise Failure(400)
    change = files.rename if action == "rename" else files.copy
    await asyncio.to_thread(change, root, files.normal(source), files.normal(target))
    return no_content()


# --- files -----------------------------------------------------------------------------------------------


async def get_file(call: Call) -> Answer:
    storage = _storage(call)
    root = _root(call, storage)
    relative = files.decode(call.args[1])
    path = files.existing(root, relative)
    kind = wanted_type(call.accept, (type_bytes, type_json, type_html))
    if kind is None:
        raise Failure(406)
    if kind == type_bytes:
        if path.is_dir():
            raise Failure(406)
        return _content(call, path)
    return _described(call, storage, root, relative, path, as_html=kind == type_html)


def _content(call: Call, path: Path) -> Answer:
    """The bytes: 206 for a range, with neither Content-Range nor Content-Length, as the server does."""
    size = path.stat().st_size
    part = files.byte_range(call.request.headers.get("Range"), size)
    offset, length = part or (0, size)
    return Answer(206 if part else 200, content_type=type_bytes, part=FilePart(path, offset, length))


def _described(call: Call, storage: Storage, root: Path, relative: str, path: Path, as_html: bool) -> Answer:
    account, group = call.caller.uid or "nobody", call.caller.group or "users"
    document = files.properties(path, account, group)
    document["metadata"] = storage.metadata.get(relative, {})
    parent = f"{call.site.external_base}/storages/{storage.id}"
    document["_links"] = {"parentStorage": documents.link(parent)}
    headers = {} if document["isDirectory"] else {"Accept-Ranges": "bytes"}
    if document["isDirectory"]:
        default = files.page if relative else files.root_page
        offset, num = call.integer("offset", 0), call.integer("num", default)
        if offset < 0 or num < 0:
            raise Failure(500, "java.lang.IllegalArgumentException: offset and num must be positive.")
        document["content"] = files.listing(root, relative, account, group, offset, num)
        url = f"{call.base}/storages/{storage.id}/files"
        # There is always a next link, and the path is missing in it.
        document["_links"]["self"] = documents.link(f"{url}?offset={offset}&num={num}")
        document["_links"]["next"] = documents.link(f"{url}?offset={offset + num}&num={num}")
    return json_answer(document, headers=headers, as_html=as_html)


async def put_file(call: Call) -> Answer:
    storage = _storage(call)
    root = _root(call, storage)
    relative = files.decode(call.args[1])
    if call.request.headers.get("Content-Type", "").partition(";")[0].strip().lower() == type_json:
        path = files.existing(root, relative)
        changes = await call.json("Could not set properties")
        return json_answer(files.verdicts(path, changes, storage.metadata.setdefault(relative, {})))
    path = files.inside(root, relative)
    if path.is_dir():
        raise Failure(500, f"Could not write file: java.io.IOException: /{relative[:200]} is a directory")
    await receive(call, path, append=False)
    return no_content()


async def receive(call: Call, path: Path, append: bool) -> int:
    """Write the request's body to a file, bounded; returns the bytes written. Faults F-U23 act here."""
    rule = next((rule for rule in call.rules if rule.do == "upload"), None)
    variant = rule.variant if rule else ""
    files.make_directory(path.parent)
    written = 0
    try:
        with _open_for_writing(path, append) as file:
            async for piece in call.request.content.iter_any():
                written += len(piece)
                if variant == "quota" or written > call.site.config.largest_file:
                    raise OSError(122, "Disk quota exceeded")
                if variant in ("cut", "size"):
                    piece = piece[: max(1, len(piece) // 2)]
                file.write(piece)
                if variant == "cut" and call.request.transport is not None:
                    call.request.transport.abort()
                    break
    except OSError as error:
        raise Failure(
            500, f"Could not write file: java.io.IOException: TSI_FAILED: {error.strerror}: /{path.name}"
        ) from error
    return written


@contextlib.contextmanager
def _open_for_writing(path: Path, append: bool) -> Iterator[IO[bytes]]:
    """The file, readable for the group as the site's umask says."""
    # Removed, not truncated: a running script or a hard link keeps the old content.
    if not append:
        path.unlink(missing_ok=True)
    with open(path, "ab" if append else "wb") as file:
        path.chmod(0o640)
        yield file


async def make_directory(call: Call) -> Answer:
    storage = _storage(call)
    root = _root(call, storage)
    relative = files.decode(call.args[1])
    await call.body()
    files.make_directory(files.inside(root, relative))
    return created(f"{call.site.external_base}/storages/{storage.id}/files/{relative}")


async def delete_file(call: Call) -> Answer:
    root = _root(call, _storage(call))
    await asyncio.to_thread(files.remove, root, files.decode(call.args[1]))
    return no_content()


# --- transfers -------------------------------------------------------------------------------------------


async def start_import(call: Call) -> Answer:
    return await _byte_transfer(call, is_export=False)


async def start_export(call: Call) -> Answer:
    return await _byte_transfer(call, is_export=True)


async def _byte_transfer(call: Call, is_export: bool) -> Answer:
    storage = _storage(call)
    root = _root(call, storage)
    kind = "export" if is_export else "import"
    wish = await call.json(f"Could not create file {kind}")
    protocol = str(wish.get("protocol", "BFT"))
    if protocol != "BFT":
        raise Failure(
            500,
            f"Could not create file {kind}: java.lang.IllegalArgumentException: Protocol "
            f"'{protocol[:20]}' is not available.",
        )
    relative = files.normal(str(wish.get("file", "")))
    path = files.existing(root, relative) if is_export else files.inside(root, relative)
    transfer = ByteTransfer(
        new_id(),
        call.caller.dn,
        ends_at=call.site.clock.now() + 86_400,
        storage=storage.id,
        is_export=is_export,
        file=f"/{relative}",
        path=path,
        append=str(wish.get("overwrite", "true")).lower() == "false",
    )
    call.site.byte_transfers[transfer.id] = transfer
    document = {
        "protocol": "BFT",
        "parent": f"{call.base}/storages/{storage.id}",
        "isExport": str(is_export).lower(),
        "fileName": transfer.file,
        "accessURL": f"{call.site.external}/rest/files/{transfer.id}",
    }
    return json_answer(document, headers={"Location": f"{call.base}/client-server-transfers/{transfer.id}"})


async def get_byte_transfers(call: Call) -> Answer:
    return page(call, "client-server-transfers", call.site.byte_transfers.values())


def _found_byte_transfer(call: Call) -> ByteTransfer:
    transfer = call.site.byte_transfers.get(call.args[0])
    if transfer is None:
        raise Failure(404)
    return transfer


async def get_byte_transfer(call: Call) -> Answer:
    transfer = _found_byte_transfer(call)
    require(call, transfer, "read")
    return shown(call, documents.byte_transfer(transfer, call.base))


async def delete_byte_transfer(call: Call) -> Answer:
    transfer = _found_byte_transfer(call)
    require_owner(call, transfer)
    del call.site.byte_transfers[transfer.id]
    return no_content()


async def send_bytes(call: Call) -> Answer:
    """`GET /rest/files/ID`. Here the range is confirmed, unlike below a storage."""
    transfer = _found_byte_transfer(call)
    if not transfer.is_export or not transfer.path.is_file():
        raise Failure(404)
    answer = _content(call, transfer.path)
    assert answer.part is not None
    if answer.status == 206:
        first, last = answer.part.offset, answer.part.offset + answer.part.length - 1
        answer.headers["Content-Range"] = f"bytes {first}-{last}/{transfer.path.stat().st_size}"
    answer.headers["Content-Disposition"] = f'attachment; filename="{transfer.path.name}"'
    transfer.moved = answer.part.length
    return answer


async def take_bytes(call: Call) -> Answer:
    """`PUT /rest/files/ID`; appends when the import was made with `overwrite: false`."""
    transfer = _found_byte_transfer(call)
    if transfer.is_export:
        raise Failure(404)
    transfer.moved += await receive(call, transfer.path, transfer.append)
    return no_content()


async def get_transfers(call: Call) -> Answer:
    return page(call, "transfers", call.site.transfers.values())


async def start_transfer(call: Call) -> Answer:
    storage = _storage(call)
    _root(call, storage)
    wish = await call.json("Could not create transfer")
    file, source, target = str(wish.get("file", "")), wish.get("source"), wish.get("target")
    if not file or not (source or target):
        raise Failure(
            500, "Could not create transfer: java.lang.IllegalArgumentException: Need 'file' and 'source' or 'target'"
        )
    here = f"{call.base}/storages/{storage.id}/files/{files.normal(file)}"
    tags = wish.get("tags")
    transfer = Transfer(
        new_id(),
        call.caller.dn,
        ends_at=call.site.clock.now() + 86_400,
        tags=[str(tag) for tag in tags] if isinstance(tags, list) else [],
        storage=storage.id,
        is_export=bool(target),
        source=here if target else str(source),
        target=str(target) if target else here,
        protocol=str(wish.get("protocol", "BFT"))[:20],
    )
    call.site.start_transfer(transfer, call.caller.uid or "nobody")
    return created(f"{call.base}/transfers/{transfer.id}")


def _found_transfer(call: Call) -> Transfer:
    transfer = call.site.transfers.get(call.args[0])
    if transfer is None:
        raise Failure(404)
    return transfer


async def get_transfer(call: Call) -> Answer:
    transfer = _found_transfer(call)
    require(call, transfer, "read")
    return shown(call, documents.transfer(call.site, transfer, call.base))


async def put_transfer(call: Call) -> Answer:
    return await modify(call, _found_transfer(call))


async def delete_transfer(call: Call) -> Answer:
    transfer = _found_transfer(call)
    require_owner(call, transfer)
    del call.site.transfers[transfer.id]
    if transfer.task is not None:
        transfer.task.cancel()
    return no_content()


def add_to(routes: Routes) -> None:
    def add(method: str, pattern: str, endpoint: str, handler: Any, **more: Any) -> None:
        routes.add(method, pattern, Route(endpoint, handler, **more))

    json_in = {"takes_json": True}
    own_types: dict[str, Any] = {"produces": ()}
    add("GET", "core/storages", "list", get_storages)
    add("POST", "core/storages", "storage", create_storage, **json_in)
    add("GET", "core/storages/*", "storage", get_storage)
    add("PUT", "core/storages/*", "storage", put_storage, **json_in)
    add("DELETE", "core/storages/*", "storage", delete_storage)
    add("POST", "core/storages/*/actions/*", "rename", act_on_storage, **json_in)
    add("POST", "core/storages/*/imports", "transfers", start_import, **json_in)
    add("POST", "core/storages/*/exports", "transfers", start_export, **json_in)
    add("POST", "core/storages/*/transfers", "transfers", start_transfer, **json_in)
    add("GET", "core/storages/*/files/**", "files", get_file, **own_types)
    add("PUT", "core/storages/*/files/**", "upload", put_file, **own_types)
    add("POST", "core/storages/*/files/**", "mkdir", make_directory, **own_types)
    add("DELETE", "core/storages/*/files/**", "remove", delete_file, **own_types)
    add("GET", "core/transfers", "list", get_transfers)
    add("GET", "core/transfers/*", "transfers", get_transfer)
    add("PUT", "core/transfers/*", "transfers", put_transfer, **json_in)
    add("DELETE", "core/transfers/*", "transfers", delete_transfer)
    add("GET", "core/client-server-transfers", "list", get_byte_transfers)
    add("GET", "core/client-server-transfers/*", "transfers", get_byte_transfer)
    add("DELETE", "core/client-server-transfers/*", "transfers", delete_byte_transfer)
    add("GET", "files/*", "files", send_bytes, **own_types)
    add("PUT", "files/*", "upload", take_bytes, **own_types)
