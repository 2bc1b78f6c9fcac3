"""/v1/files: uploads, checked row by row before they are accepted."""

import hashlib
import os
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Form, Query, Request, UploadFile
from fastapi.responses import FileResponse

from services.api.error_responses import Problem, cursor, not_found
from services.api.schemas import DeletedFile, FileObject, Page
from services.api.state import Service, ServiceState
from services.jobs.tables import FileRow
from services.settings import Settings
from wmss.data.tasks import check_rows
from wmss.errors import shortened, shown
from wmss.ids import FILE, new_id

router = APIRouter(prefix="/v1/files", tags=["files"])

PURPOSE = "fine-tune"
CHUNK_BYTES = 1 << 20


def sweep_partial_uploads(settings: Settings) -> None:
    """Remove what an API that died in the middle of an upload left behind; called before requests are taken."""
    for partial in (settings.root / "files").glob("*.partial"):
        partial.unlink()


async def known_form(request: Request) -> None:
    """Dependency: a form field that nothing reads (`expires_after`, say, or a second file) is refused, not ignored."""
    form = await request.form()
    for name, value in form.multi_items():
        if name not in ("file", "purpose"):
            message = f"{shortened(name)}: unknown form field; expected file and purpose"
            raise Problem(400, "unknown_parameter", message, param=shortened(name))
        if len(form.getlist(name)) > 1:
            raise Problem(400, "invalid_parameter", f"{name}: given twice; send one request for each", param=name)
        if isinstance(value, str) is (name == "file"):
            expected = "a file, got text" if name == "file" else "text, got a file"
            message = f"{name}: expected {expected}; send it as curl -F purpose=fine-tune -F file=@train.jsonl does"
            raise Problem(400, "invalid_parameter", message, param=name)


@router.post("", dependencies=[Depends(known_form)])
def upload(service: Service, file: UploadFile, purpose: Annotated[str, Form()]) -> FileObject:
    """Store a JSONL file for `training_file` or `validation_file`; a row that cannot be used refuses the file."""
    if purpose != PURPOSE:
        raise Problem(400, "invalid_purpose", f'purpose: expected "{PURPOSE}", got {shown(purpose)}', param="purpose")
    filename = os.path.basename((file.filename or "").replace("\\", "/"))[:255] or "upload.jsonl"
    if "\0" in filename:
        message = f"file: its name {filename!r} holds a NUL character; rename it"
        raise Problem(400, "invalid_filename", message, param="file")
    file_id = new_id(FILE)
    target = service.settings.file_path(file_id)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    try:
        size, digest = _copy(file, partial, service.settings.max_file_bytes)
        check_rows(partial, param="file", name=filename)
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)
    row = service.store.add_file(file_id, filename=filename, purpose=purpose, size=size, sha256=digest)
    return FileObject.of(row)


@router.get("")
def list_files(
    service: Service,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: str = PURPOSE,
) -> Page[FileObject]:
    """Newest first, or with order=asc oldest first."""
    if purpose != PURPOSE:
        return Page(data=[], has_more=False)
    with cursor(after):
        rows, more = service.store.files(after=after, limit=limit, oldest_first=order == "asc")
    return Page(data=[FileObject.of(row) for row in rows], has_more=more)


@router.get("/{file_id}")
def retrieve(service: Service, file_id: str) -> FileObject:
    """One file."""
    return FileObject.of(_file(service, file_id))


@router.get("/{file_id}/content")
def content(service: Service, file_id: str) -> FileResponse:
    """What was uploaded, byte for byte."""
    row = _file(service, file_id)
    path = service.settings.file_path(row.id)
    if not path.is_file():
        raise not_found("file on disk", file_id, "file_id")
    return FileResponse(path, media_type="application/jsonl", filename=row.filename)


@router.delete("/{file_id}")
def delete(service: Service, file_id: str) -> DeletedFile:
    """Delete a file; one that a queued or running job needs answers 409."""
    _file(service, file_id)
    needed_by = service.store.delete_file(file_id)
    if needed_by:
        message = f"file_id: {file_id} is needed by {', '.join(needed_by)}; cancel or await the job"
        raise Problem(409, "file_in_use", message, param="file_id")
    service.settings.file_path(file_id).unlink(missing_ok=True)
    return DeletedFile(id=file_id)


def _file(service: ServiceState, file_id: str) -> FileRow:
    row = service.store.file(file_id)
    if row is None:
        raise not_found("file", file_id, "file_id")
    return row


def _copy(file: UploadFile, target: Path, limit: int) -> tuple[int, str]:
    digest = hashlib.sha256()
    size = 0
    with target.open("wb") as out:
        while chunk := file.file.read(CHUNK_BYTES):
            size += len(chunk)
            if size > limit:
                raise Problem(413, "file_too_large", f"file: expected at most {limit} bytes; split it", param="file")
            digest.update(chunk)
            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    return size, digest.hexdigest()
