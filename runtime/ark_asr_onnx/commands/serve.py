"""``ark-asr serve``: the HTTP service, in the foreground or in the background."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import logging
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .. import MissingExtraError, PackageError, ServiceError, open_package
from ..decoding.slots import DEFAULT_SLOTS
from .settings import Settings, UsageError, arguments_of_all, few, positive, seconds, settings
from .terminal import say

if TYPE_CHECKING:
    from ..server.process import Background
    from ..server.run import Address
    from ..server.service import ServiceSettings

_ACTIONS = ("start", "status", "stop", "restart")
_CANNOT_START, _NOT_READY, _NOT_RUNNING = 3, 1, 3
_KEYS_VARIABLE = "ARK_ASR_API_KEYS"
_MEGABYTE = 1_000_000
_MORE_SECONDS = 10.0  # after the grace period, until a service that does not end is killed
_M_ARENA_MAX = -8  # of glibc's malloc.h


def serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``serve``; environment variables ``ARK_ASR_…`` are their defaults."""
    add = parser.add_argument
    add("action", nargs="?", choices=_ACTIONS,
        help="for a service in the background; default: serve in the foreground")  # fmt: skip
    arguments_of_all(parser)
    add(
        "--host", default=_environment("HOST", "127.0.0.1"), help="address to listen on (127.0.0.1)"
    )
    add("--port", type=port, default=_environment("PORT", "8025"), help="(8025)")
    add("--max-audio-seconds", type=seconds, default=_environment("MAX_AUDIO_SECONDS", "14400"),
        metavar="SECONDS", help="longer audio is refused, not cut (14400)")  # fmt: skip
    add("--max-upload-mb", type=positive, default=_environment("MAX_UPLOAD_MB", "200"),
        metavar="N", help="larger uploads are refused (200)")  # fmt: skip
    add("--max-active", type=few, default=_environment("MAX_ACTIVE", "16"), metavar="N",
        help="requests whose audio is read at the same time (16)")  # fmt: skip
    add("--max-waiting", type=few, default=_environment("MAX_WAITING", "32"), metavar="N",
        help="requests that may wait; further ones get 429 (32)")  # fmt: skip
    add("--upload-timeout", type=seconds, default=_environment("UPLOAD_TIMEOUT", "30"),
        metavar="SECONDS", help="end an upload after this long without a byte (30)")  # fmt: skip
    add("--grace", type=seconds, default=_environment("GRACE", "30"), metavar="SECONDS",
        help="for running requests when the service ends (30)")  # fmt: skip
    add("--idle-unload", type=seconds, default=_environment("IDLE_UNLOAD"), metavar="SECONDS",
        help="free the model's memory after this long without work")  # fmt: skip
    add("--api-key-file", type=Path, default=_environment("API_KEY_FILE"), metavar="FILE",
        help=f"one key on each line; every request needs one of them (or ${_KEYS_VARIABLE}, "
        "separated by commas)")  # fmt: skip
    add("--cors-origin", action="append", metavar="ORIGIN",
        help="pages of this origin may use the service, such as https://example.org; "
        "repeatable")  # fmt: skip
    add("--allowed-host", action="append", metavar="NAME",
        help="another host name of the service, such as a proxy's; repeatable")  # fmt: skip
    add("--alias", action="append", metavar="NAME", help="another name of the model; repeatable")
    add("--strict-model", action="store_true", help="refuse requests for other models")
    add("--no-ui", action="store_true", default=_environment("NO_UI") is not None, help="no page")
    add("--root-path", default=_environment("ROOT_PATH", ""), metavar="/PATH",
        help="prefix that a proxy adds to the paths")  # fmt: skip
    add("--ssl-certfile", default=_environment("SSL_CERTFILE"), metavar="FILE", help="for https")
    add("--ssl-keyfile", default=_environment("SSL_KEYFILE"), metavar="FILE", help="its key")
    add("--run-dir", type=Path, default=_environment("RUN_DIR", "runs"), metavar="DIR",
        help="for the log and the pid file of a service in the background (runs)")  # fmt: skip
    add("--wait", type=seconds, default=120.0, metavar="SECONDS",
        help="start: for the service to be ready (120)")  # fmt: skip
    add(
        "--block-token-id-from",
        type=positive,
        default=_environment("BLOCK_TOKEN_ID_FROM"),
        metavar="ID",
        help="block this id and all above it (default: the package's)",
    )
    parser.set_defaults(
        run=_serve,
        max_new_tokens=_environment("MAX_NEW_TOKENS", "256"),
        slots=_environment("SLOTS", str(DEFAULT_SLOTS)),
        threads=_environment("THREADS"),
    )


def _serve(arguments: argparse.Namespace) -> int:
    try:
        from ..server import process, run
    except ImportError as error:
        raise MissingExtraError(
            f"the service needs an extra ({error.name} is missing): install 'ark-asr-onnx[server]'"
        ) from error
    if arguments.ssl_keyfile and not arguments.ssl_certfile:
        raise UsageError("--ssl-keyfile needs --ssl-certfile")
    root_path = arguments.root_path.strip("/")
    address = run.Address(
        arguments.host, arguments.port, arguments.ssl_certfile, arguments.ssl_keyfile,
        f"/{root_path}" if root_path else "",
    )  # fmt: skip
    if arguments.action is None:
        return _foreground(arguments, address)
    if sys.platform == "win32":
        raise UsageError("on Windows the service runs in the foreground: ark-asr serve")
    return _in_background(arguments, address, process.Background(arguments.run_dir, address))


def _foreground(arguments: argparse.Namespace, address: Address) -> int:
    from ..server.run import run

    _share_memory()
    told = settings(arguments)
    service = _service_settings(arguments, told, address)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    for noisy in ("uvicorn", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if not service.access.is_loopback and not service.access.keys:
        say(f"warning: {address.url} is open to everybody who can reach it; see --api-key-file")
    load = functools.partial(told.load, idle_unload_seconds=arguments.idle_unload)
    try:
        _check_model(told)
        run(load, service, address, lambda url: say(f"listening on {url}"))
    except (ServiceError, PackageError) as error:
        say(f"error: {error}")
        return _CANNOT_START
    return 0


def _check_model(told: Settings) -> None:
    """Raise before the service listens: if there is no model, or it may not write the hotwords."""
    name = told.model.name
    if told.options.hotwords:
        told.check_hotwords(open_package(name, local_files_only=told.model.local_files_only))


def _share_memory() -> None:
    """Let threads share glibc's heaps: a heap per thread keeps memory that others could use."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def _in_background(arguments: argparse.Namespace, address: Address, background: Background) -> int:
    if arguments.action == "status":
        return _status(background)
    if arguments.action in ("start", "restart"):  # errors here, not in the log
        told = settings(arguments)
        _check_model(told)
        _service_settings(arguments, told, address)
    if arguments.action in ("stop", "restart"):
        was_running = background.stop(arguments.grace + _MORE_SECONDS)
        say("stopped" if was_running else "was not running")
        if arguments.action == "stop":
            return 0
    try:
        found = background.start(_without_action(sys.argv[1:], arguments.action), arguments.wait)
    except ServiceError as error:
        say(f"error: {error}")
        return _CANNOT_START
    print(f"process {found.pid}, {address.url}, log {background.log_file}")
    return 0


def _status(background: Background) -> int:
    found, readiness = background.process(), background.readiness()
    if found is None:
        print("not running")
        return _NOT_RUNNING
    is_ready = readiness == 200
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(background.pid_file.stat().st_mtime))
    print(f"process {found.pid}, {background.url}, {'ready' if is_ready else 'not ready'}, "
          f"since {since}, log {background.log_file}")  # fmt: skip
    return 0 if is_ready else _NOT_READY


def _service_settings(
    arguments: argparse.Namespace, told: Settings, address: Address
) -> ServiceSettings:
    from ..server.limits import Access, Limits, is_loopback
    from ..server.service import ServiceSettings

    limits = Limits(
        max_upload_bytes=arguments.max_upload_mb * _MEGABYTE,
        max_audio_seconds=arguments.max_audio_seconds,
        max_active=arguments.max_active,
        max_waiting=arguments.max_waiting,
        silent_seconds=arguments.upload_timeout,
        grace_seconds=arguments.grace,
    )
    hosts = arguments.allowed_host or _list(_environment("ALLOWED_HOST"))
    origins = arguments.cors_origin or _list(_environment("CORS_ALLOW_ORIGINS"))
    access = Access(
        keys=frozenset(_keys(arguments.api_key_file)),
        origins=tuple(map(_origin, origins)),
        hosts=frozenset(map(_host, hosts)),
        is_loopback=is_loopback(address.host),
    )
    return ServiceSettings(
        limits=limits,
        access=access,
        slots=told.slots,
        options=replace(told.options, block_from_id=arguments.block_token_id_from),
        splitting=told.splitting,
        names=("ark-asr", *(arguments.alias or _list(_environment("ALIAS")))),
        is_strict=arguments.strict_model,
        has_page=not arguments.no_ui,
    )


def _keys(path: Path | None) -> list[str]:
    """Keys from the file and the environment. Raises :class:`UsageError` if the file has none."""
    found = _list(os.environ.get(_KEYS_VARIABLE))
    if path is not None:
        try:
            lines = Path(path).read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--api-key-file: {path} cannot be read ({error})") from error
        keys = [line.strip() for line in lines if line.strip()]
        if not keys:
            raise UsageError(f"--api-key-file: {path} holds no key; write one a line")
        found += keys
    if not all(key.isascii() and key.isprintable() for key in found):
        raise UsageError("a key has other characters than ASCII, which clients cannot send")
    return found


def _origin(text: str) -> str:
    """An origin as browsers write it."""
    origin = text.rstrip("/").lower()
    if origin not in ("*", "null") and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#]+", origin):
        raise UsageError(f"--cors-origin: {text} is no origin, such as https://example.org")
    return origin


def _host(text: str) -> str:
    """A host name as requests contain it."""
    from ..server.limits import host_name

    if not (name := host_name(text)):
        raise UsageError(f"--allowed-host: {text} is no name, such as asr.example.org")
    return name


def _environment(name: str, default: str | None = None) -> str | None:
    return os.environ.get(f"ARK_ASR_{name}") or default


def _list(text: str | None) -> list[str]:
    return [item.strip() for item in (text or "").split(",") if item.strip()]


def port(text: str) -> int:
    """An argument that is the number of a port."""
    value = int(text)
    if not 1 <= value <= 65535:
        raise argparse.ArgumentTypeError("must be 1 to 65535")
    return value


def _without_action(arguments: Sequence[str], action: str) -> list[str]:
    """The arguments without the action, for the process in the background."""
    parser = argparse.ArgumentParser()
    serve_arguments(parser)
    rest = list(arguments[arguments.index("serve") + 1 :])
    for i in (i for i, argument in enumerate(rest) if argument == action):
        without = rest[:i] + rest[i + 1 :]
        with contextlib.suppress(SystemExit), contextlib.redirect_stderr(None):
            if parser.parse_args(without).action is None:  # else it was the value of an option
                return without
    raise UsageError(f"say {action} once, as the action")
