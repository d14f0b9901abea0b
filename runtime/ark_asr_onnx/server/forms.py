"""Reads a request's multipart form: its fields, and its audio as a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from . import fields
from .answers import Failure
from .gate import Refused
from .service import ServiceSettings

_MAX_FIELDS, _MAX_FIELD_BYTES = 64, 65_536


async def read(request: Request) -> FormData:
    """The parts of a request; Starlette spools a large file to disk. Raises :class:`Refused`."""
    kind = request.headers.get("content-type", "").partition(";")[0]
    if kind.strip().lower() != "multipart/form-data":
        raise Refused(
            Failure(
                415, "the body must be multipart/form-data with a part 'file', as curl -F sends",
                "unsupported_media_type",
            )
        )  # fmt: skip
    try:
        return await request.form(
            max_files=1, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES
        )
    except (HTTPException, FormParserError, UnicodeError) as error:  # an unknown charset
        reason = error.detail if isinstance(error, HTTPException) else error
        raise Refused(Failure(400, f"the form cannot be read: {reason}")) from error


def asked_of(
    form: FormData,
    parse: Callable[[fields.Form, int], fields.Request],
    settings: ServiceSettings,
    unreadable: int,
) -> fields.Request:
    """The parsed fields; ``unreadable`` is the status for a value that is not a number."""
    values: dict[str, list[str]] = {}
    for name, value in form.multi_items():
        if isinstance(value, str):
            values.setdefault(name, []).append(value)
    try:
        asked = parse(values, settings.options.max_new_tokens)
    except fields.FieldError as error:
        status = unreadable if error.status == 422 else error.status
        raise Refused(Failure(status, str(error), error.code, error.param)) from error
    if settings.is_strict and asked.model is not None and asked.model not in settings.names:
        raise Refused(no_model(asked.model))
    return asked


def audio(form: FormData, names: tuple[str, ...], unreadable: int) -> BinaryIO:
    """The file of a form, under the first of ``names`` that is present."""
    for name in names:
        value = form.get(name)
        if isinstance(value, UploadFile):
            return value.file
        if value is not None:
            raise Refused(
                Failure(unreadable, f"the part {name!r} has no file name; send it as a file",
                        param=name)
            )  # fmt: skip
    raise Refused(
        Failure(
            unreadable, f"no part {names[0]!r}, or the body was cut off; send the audio as "
            f"multipart/form-data, such as curl -F {names[0]}=@audio.wav", param=names[0],
        )
    )  # fmt: skip


def no_model(name: str) -> Failure:
    """The failure for a name that is not the model's."""
    return Failure(404, f"the model {ascii(name)[:80]} does not exist", "model_not_found", "model")
