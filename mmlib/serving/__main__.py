"""Start the service: ``python -m mmlib.serving``."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from mmlib.serving.app import create_app, server
from mmlib.serving.functions import Function
from mmlib.serving.image_search import ImageSearch
from mmlib.serving.scene_caption import SceneCaption
from mmlib.serving.scene_painting import ScenePainting
from mmlib.serving.scene_questions import SceneQuestions
from mmlib.serving.settings import LOOPBACK, Settings
from mmlib.serving.watching import log_to

FUNCTIONS: dict[str, type[Function]] = {
    "search": ImageSearch,
    "caption": SceneCaption,
    "ask": SceneQuestions,
    "paint": ScenePainting,
}


PROGRAM = "python -m mmlib.serving"


def parser(
    program: str = PROGRAM, functions: Sequence[str] = tuple(FUNCTIONS)
) -> argparse.ArgumentParser:
    """The command line.

    Args:
        program: What is typed to start it.
        functions: Names of the functions that there are.
    """
    defaults = Settings()
    options = argparse.ArgumentParser(program, description=f"Start the service: {program}.")
    add = options.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    add("--port", type=int, default=8000)
    add("--functions", nargs="+", choices=functions, default=list(functions))
    add("--no-page", action="store_true", help="the API alone, as where a token is set")
    add("--allow-host", action="append", default=[], metavar="NAME",
        help="a further name that the service answers to, * for every name")  # fmt: skip
    add("--token-file", type=Path, help="a file with the token that clients must send"
        " (or the environment variable MMLIB_TOKEN)")  # fmt: skip
    add("--threads", type=int, default=1, help="of torch, for each function")
    for name in ("max_batch", "max_queue", "max_bytes", "max_pixels"):
        add(f"--{name.replace('_', '-')}", type=int, default=getattr(defaults, name))
    for name in ("max_wait", "timeout", "body_timeout", "grace"):
        add(f"--{name.replace('_', '-')}", type=float, default=getattr(defaults, name),
            metavar="SECONDS")  # fmt: skip
    return options


def settings_of(options: argparse.Namespace) -> Settings:
    """The limits that a command line asks for.

    Raises:
        ValueError: One is out of its range.
        OSError: The token's file cannot be read.
    """
    token = os.environ.get("MMLIB_TOKEN")
    if options.token_file is not None:
        token = options.token_file.read_text(encoding="utf-8").strip()
    hosts = () if "*" in options.allow_host else (*LOOPBACK, *options.allow_host)
    names = ("max_batch", "max_queue", "max_bytes", "max_pixels", "max_wait")
    names += ("timeout", "body_timeout", "grace")
    return Settings(**{name: getattr(options, name) for name in names}, token=token, hosts=hosts)


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal comes; gives the exit code."""
    options = parser().parse_args(arguments)
    return start(options, PROGRAM, lambda: [FUNCTIONS[name]() for name in options.functions])


def start(options: argparse.Namespace, program: str, make: Callable[[], Sequence[Function]]) -> int:
    """Serve functions until a signal comes; gives the exit code.

    Args:
        options: From :func:`parser`.
        program: What was typed.
        make: Makes the functions; its errors are told without a trace.
    """
    torch.set_num_threads(options.threads)
    try:
        settings = settings_of(options)
        functions = make()
    except (ValueError, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    log_to()
    mount_page = None
    if not options.no_page and settings.token is None:  # a browser cannot send the token
        from mmlib.serving.page import mount_page
    if options.host not in LOOPBACK and settings.token is None:
        print("Other machines may ask this service, without a token.", file=sys.stderr)
    app = create_app(functions, settings, mount_page=mount_page)
    page = ", the page is at /page" if mount_page else ""
    print(f"http://{options.host}:{options.port} (API at /docs{page}; Ctrl-C ends it)", flush=True)
    try:
        server(app, options.host, options.port, settings.grace).run()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
