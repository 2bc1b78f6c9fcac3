"""/v1/files: uploads, checked row by row before they are accepted."""

import hashlib
import os
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request, UploadFile

from services.api.problems import Problem
from services.api.schemas import FileObject
from services.api.state import Service
from services.jobs.store import new_id
from services.settings import Settings
from wmss.data.dataset import read_samples

router = APIRouter(prefix="/v1/files", tags=["files"])

CHUNK_BYTES = 1 << 20


def sweep_partial_uploads(settings: Settings) -> None:
    """Remove what an API that died in the middle of an upload left behind; called before requests are taken."""
    for partial in (settings.root / "files").glob("*.partial"):
        partial.unlink()


async def known_form(request: Request) -> None:
    """Dependency: a form field that nothing reads (`expires_after`, say) is refused, not ignored."""
    for name in await request.form():
        if name not in ("file", "purpose"):
            raise Problem(
                400, "unknown_parameter", f"{name}: unknown form field; expected file and purpose", param=name
            )


@router.post("", dependencies=[Depends(known_form)])
def upload(service: Service, file: UploadFile, purpose: Annotated[str, Form()]) -> FileObject:
    """Store a JSONL file for `training_file` or `validation_file`; a row that cannot be used refuses the file."""
    if purpose != "fine-tune":
        raise Problem(400, "invalid_purpose", f'purpose: expected "fine-tune", got {purpose!r}', param="purpose")
    filename = os.path.basename((file.filename or "upload.jsonl").replace("\\", "/"))[:255]
    file_id = new_id("file")
    target = service.settings.file_path(file_id)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    try:
        size, digest = _copy(file, partial, service.settings.max_file_bytes)
        read_samples(partial, param="file", name=filename)
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)
    row = service.store.add_file(file_id, filename=filename, purpose=purpose, size=size, sha256=digest)
    return FileObject.of(row)


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
