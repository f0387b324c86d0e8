"""Writes a trained or base model as others load it.

    python workflows/export.py models:/NAME@champion --out DIR                       one model
    python workflows/export.py models:/NAME@champion --layout chatglm --out DIR      ChatGLM3's own layout
    python workflows/export.py models:/NAME@champion --layout adapter --out DIR      the LoRA adapter alone
    python workflows/export.py ADAPTER_DIR --base /models/chatglm3-6b-base --out DIR an adapter trained elsewhere, merged

Layouts: `merged` is one model in transformers' layout, for any family, and `glm` its name for ChatGLM3: transformers and
vLLM read it. `chatglm` is for what reads ChatGLM3's first layout only: llama.cpp's converter, SGLang. Merged files are
compared with the adapter beside its base, and deleted again if they answer something else. With --data FILE the loss of
both is measured too, and kept on a registered version as turnwise.merge.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workflows.cli import Exit, exit_on_error, quiet_libraries, show, show_json

if TYPE_CHECKING:
    from components.registry.checked_export import Export


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    quiet_libraries()
    from components.registry.checked_export import ExportRequest, export_model

    request = ExportRequest(
        source=arguments.model,
        target=Path(arguments.out),
        layout=arguments.layout,
        base=arguments.base,
        dtype=arguments.dtype,
        original_names=arguments.original_names,
        base_name=arguments.base_name,
        data=arguments.data,
        unknown_keys=arguments.unknown_keys,
        max_tokens=arguments.max_tokens,
        tracking=arguments.tracking_uri,
    )
    with exit_on_error():
        export = export_model(request)
    show_json(_result(export)) if arguments.json else show(export)
    return Exit.DONE


def _result(export: Export) -> dict[str, object]:
    result: dict[str, object] = {
        "source": export.source,
        "layout": export.layout,
        "directory": str(export.directory),
        "files": export.files,
    }
    if export.dtype:
        result["dtype"] = export.dtype
    if export.base_name:
        result["base_name"] = export.base_name
    if divergence := export.divergence:
        result["divergence"] = divergence.model_dump() | {"sentence": divergence.sentence()}
    if merge := export.merge:
        result["merge"] = merge.model_dump() | {"difference": merge.difference, "sentence": merge.sentence()}
    return result


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Write a trained or base model as others load it.")
    parser.add_argument("model", help="models:/NAME@ALIAS, models:/NAME/VERSION, a directory, a hub id")
    parser.add_argument("--out", required=True, metavar="DIR", help="where to write; must be new or empty")
    parser.add_argument("--layout", choices=["glm", "chatglm", "merged", "adapter"], help="default: glm, else merged")
    parser.add_argument("--base", metavar="MODEL", help="the model that an adapter directory belongs to")
    parser.add_argument("--dtype", choices=["fp16", "bf16", "fp32"], help="of the weights; default: the base's own")
    parser.add_argument("--original-names", action="store_true", help="adapter: in ChatGLM3's own module names")
    parser.add_argument("--base-name", metavar="NAME", help="adapter: its base as the machine that loads it knows it")
    parser.add_argument("--data", metavar="FILE", help="conversations on which to measure what merging costs")
    parser.add_argument(
        "--unknown-keys", default="fail", choices=["fail", "ignore"], help="of --data: as data.unknown_keys"
    )
    parser.add_argument("--max-tokens", type=int, default=1024, help="of a conversation of --data")
    parser.add_argument("--tracking-uri", help="of the registry; by default MLFLOW_TRACKING_URI, else mlflow.db here")
    parser.add_argument("--json", action="store_true", help="the result as one line of JSON")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
