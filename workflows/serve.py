"""Serves models by OpenAI's API: champions and other versions of a registry, checkpoints, base models.

    python workflows/serve.py quickstart-assistant@champion
    python workflows/serve.py support@champion support@challenger base=smollm2-135m-instruct --port 8000

An alias is followed: once it points at another version, that one answers. Clients call a model by the name that is given
here, or by NAME of NAME=MODEL. Other machines may call only with a token, which is read from TURNWISE_SERVE_TOKEN.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path

from components.errors import InputError
from workflows.cli import Exit, add_format_arguments, exit_on_error, format_spec_of, quiet_libraries, show

TOKEN = "TURNWISE_SERVE_TOKEN"
SHORTEST_TOKEN = 16
FOLLOW_SECONDS = 2.0


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    quiet_libraries()
    import uvicorn

    from components.serving.app import make_app
    from components.serving.guard import LOOPBACK
    from components.serving.limits import Limits
    from components.serving.served_models import ServedModels

    with exit_on_error():
        token = token_for(arguments.host)
        models = ServedModels(
            sources(arguments.models),
            Limits(),
            chat_format=format_spec_of(arguments),
            tracking=arguments.tracking_uri,
        )
        models.open()
    hosts = LOOPBACK if _is_loopback(arguments.host) else None
    app = make_app(models, hosts=hosts, token=token, follow_seconds=FOLLOW_SECONDS)
    for served in models.models:
        version = f", version {served.version}" if served.version else ""
        show(f"{served.id}: {served.source}{version}")
    place = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    show(f"chat page: http://{place}:{arguments.port}/")
    show(f"OpenAI's API: http://{place}:{arguments.port}/v1", end="\n")
    uvicorn.run(app, host=arguments.host, port=arguments.port, log_level="warning", access_log=False)
    return Exit.DONE


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Serve models by OpenAI's API.")
    parser.add_argument(
        "models",
        nargs="+",
        metavar="[NAME=]MODEL",
        help="NAME@ALIAS or NAME/VERSION of the registry, a checkpoint, a base model",
    )
    parser.add_argument("--host", default="127.0.0.1", help=f"another than this machine's own needs {TOKEN}")
    parser.add_argument("--port", type=int, default=8000)
    add_format_arguments(parser, "of base models; trained ones know theirs")
    parser.add_argument("--tracking-uri", help="of the registry; by default MLFLOW_TRACKING_URI, else mlflow.db here")
    return parser


def sources(given: Sequence[str]) -> dict[str, str]:
    """Returns each model by the name that clients use. Raises InputError if two have one name."""
    sources: dict[str, str] = {}
    for model in given:
        name, equals, source = model.partition("=")
        name, source = (name, source) if equals else (model.removeprefix("models:/"), model)
        if not name or not source:
            raise InputError(f"{model}: write it as NAME=MODEL")
        if name in sources:
            raise InputError(f"{name}: two models of one name; call one of them otherwise: NAME={source}")
        sources[name] = _source(source)
    return sources


def _source(model: str) -> str:
    """Returns a model as it is loaded: NAME@ALIAS and NAME/VERSION are of the registry, unless there is such a path."""
    registered = re.fullmatch(r"[^/@]+(@[^/@]+|/\d+)", model)
    return f"models:/{model}" if registered and not Path(model).exists() else model


def token_for(host: str) -> str | None:
    """Returns the token that clients must bring. Raises InputError if they need one and there is none."""
    token = os.environ.get(TOKEN)
    if token is None:
        if not _is_loopback(host):
            raise InputError(
                f"--host {host}: others could use the models; set {TOKEN} to a secret that clients must bring"
            )
        return None
    if len(token.strip()) < SHORTEST_TOKEN:
        raise InputError(f"{TOKEN}: must have at least {SHORTEST_TOKEN} characters")
    return token.strip()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    raise SystemExit(main())
