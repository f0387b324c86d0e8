"""Serves models by OpenAI's API: champions and other versions of a registry, checkpoints, base models.

    python workflows/serve.py quickstart-assistant@champion
    python workflows/serve.py support@champion support@challenger base=smollm2-135m-instruct --port 8000

An alias is followed: once it points at another version, that one answers. Clients call a model by the name that is given
here, or by NAME of NAME=MODEL. Other machines may call only with a token, which is read from TURNWISE_SERVE_TOKEN.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from workflows.cli import Exit, add_format_arguments, exit_on_error, format_spec_of, quiet_libraries, show


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    quiet_libraries()
    from components.serving.access import token_for
    from components.serving.limits import Limits
    from components.serving.model_names import sources_of
    from components.serving.run_server import run_server
    from components.serving.served_models import ServedModels

    with exit_on_error():
        token = token_for(arguments.host)
        models = ServedModels(
            sources_of(arguments.models),
            Limits(),
            chat_format=format_spec_of(arguments),
            tracking=arguments.tracking_uri,
        )
        models.open()
    for served in models.models:
        version = f", version {served.version}" if served.version else ""
        show(f"{served.id}: {served.source}{version}")
    place = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    show(f"chat page: http://{place}:{arguments.port}/")
    show(f"OpenAI's API: http://{place}:{arguments.port}/v1")
    run_server(models, host=arguments.host, port=arguments.port, token=token)
    return Exit.DONE


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Serve models by OpenAI's API.")
    parser.add_argument(
        "models",
        nargs="+",
        metavar="[NAME=]MODEL",
        help="NAME@ALIAS or NAME/VERSION of the registry, a checkpoint, a base model",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="another than this machine's own needs TURNWISE_SERVE_TOKEN"
    )
    parser.add_argument("--port", type=int, default=8000)
    add_format_arguments(parser, "of base models; trained ones know theirs")
    parser.add_argument("--tracking-uri", help="of the registry; by default MLFLOW_TRACKING_URI, else mlflow.db here")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
