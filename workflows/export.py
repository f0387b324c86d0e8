"""Writes a trained or base model as others load it.

    python workflows/export.py models:/NAME@champion --out DIR                       one model
    python workflows/export.py models:/NAME@champion --layout chatglm --out DIR      ChatGLM3's own layout
    python workflows/export.py models:/NAME@champion --layout adapter --out DIR      the LoRA adapter alone
    python workflows/export.py ADAPTER_DIR --base /models/chatglm3-6b-base --out DIR an adapter trained elsewhere, merged

Layouts: `merged` is one model in transformers' layout, for any family, and `glm` its name for ChatGLM3: transformers and
vLLM read it. `chatglm` is for what knows ChatGLM3 by its first layout alone: llama.cpp's converter, SGLang. Merged files are
asked what the adapter beside its base answers, and taken away again if they say something else. With --data FILE the loss
of both is measured too, and kept on a registered version as turnwise.merge.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflows.cli import REGISTERED, Exit, exit_on_error, json_line, quiet_libraries

if TYPE_CHECKING:
    from components.inference.merge_check import Divergence, MergeCheck, Scorer
    from components.models.export import Exportable, Layout


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    quiet_libraries()
    with exit_on_error(), tempfile.TemporaryDirectory(prefix="turnwise-export-") as scratch:
        result = export(arguments, Path(scratch))
    print(json_line(result) if arguments.json else _sentence(result))
    return Exit.DONE


def export(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """What was written, for people and machines. Raises ValueError for whatever cannot be exported so."""
    from components.experiment.spec import ModelSpec
    from components.inference.merge_check import MergeCheck
    from components.models.dtypes import DTYPES
    from components.models.export import (
        load_as_trained,
        open_exportable,
        reload_whole,
        write_adapter,
        write_whole,
    )

    target = Path(arguments.out).expanduser().absolute()
    if target.exists() and any(target.iterdir()):
        raise ValueError(f"--out {arguments.out}: is not empty; name a new directory")
    source = open_exportable(_directory(arguments), ModelSpec(path=arguments.base) if arguments.base else None, scratch)
    layout: Layout = arguments.layout or ("glm" if source.is_chatglm3 else "merged")
    result: dict[str, Any] = {"source": arguments.model, "layout": layout, "directory": str(target)}
    if layout == "adapter":
        write_adapter(source, target, original_names=arguments.original_names)
        return result | {"files": _names(target)}
    scorer = _scorer(arguments, source, scratch) if source.adapter else None
    before = scorer.score(load_as_trained(source), precision=source.precision) if scorer else None
    dtype = DTYPES[arguments.dtype] if arguments.dtype else source.dtype
    result |= {"dtype": str(dtype).removeprefix("torch.")}
    if source.adapter is None:
        write_whole(load_as_trained(source), source, layout, target, dtype)
        return result | {"files": _names(target)}
    try:
        divergence = _write_merged(source, layout, target, dtype)
        result |= {"files": _names(target), "divergence": divergence.model_dump() | {"sentence": divergence.sentence()}}
        if scorer and before:
            after, num_targets = scorer.score(reload_whole(target), precision=source.precision)
            check = MergeCheck(adapter_loss=before[0], merged_loss=after, num_targets=num_targets)
            check.check(quantized=source.quantize is not None)
            result["merge"] = check.model_dump() | {"difference": check.difference, "sentence": check.sentence()}
            _keep(arguments, check)
    except ValueError:
        shutil.rmtree(target, ignore_errors=True)  # nobody shall take it for what was trained
        raise
    return result


def _write_merged(source: Exportable, layout: Layout, target: Path, dtype: Any) -> Divergence:
    """Writes the merged model, and asks its files what the adapter beside its base answers. One model at a time.

    Raises ValueError if they answer something else.
    """
    from components.inference.merge_check import check_merge, divergence, fixed_rows, next_tokens
    from components.models.adapters import merge
    from components.models.export import load_as_trained, load_on_published_base, reload_whole, write_whole

    rows = fixed_rows(source.chat_format)
    trained = next_tokens(load_as_trained(source), rows) if source.quantize is not None else None
    beside = load_on_published_base(source)
    expected = next_tokens(beside, rows)
    write_whole(merge(beside), source, layout, target, dtype)
    del beside
    found = next_tokens(reload_whole(target), rows)
    check_merge(divergence(expected, found))
    if trained is None:
        return divergence(expected, found)
    check_merge(divergence(trained, found), quantized=True)
    return divergence(trained, found)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Write a trained or base model as others load it.")
    parser.add_argument("model", help="models:/NAME@ALIAS, models:/NAME/VERSION, a directory, a hub id")
    parser.add_argument("--out", required=True, metavar="DIR", help="where to write; must be new or empty")
    parser.add_argument("--layout", choices=["glm", "chatglm", "merged", "adapter"], help="default: glm, else merged")
    parser.add_argument("--base", metavar="MODEL", help="the model that an adapter directory belongs to")
    parser.add_argument("--dtype", choices=["fp16", "bf16", "fp32"], help="of the weights; default: the base's own")
    parser.add_argument("--original-names", action="store_true", help="adapter: in ChatGLM3's own module names")
    parser.add_argument("--data", metavar="FILE", help="conversations on which to measure what merging costs")
    parser.add_argument(
        "--unknown-keys", default="fail", choices=["fail", "ignore"], help="of --data: as data.unknown_keys"
    )
    parser.add_argument("--max-tokens", type=int, default=1024, help="of a conversation of --data")
    parser.add_argument("--tracking-uri", help="of the registry; by default MLFLOW_TRACKING_URI, else mlflow.db here")
    parser.add_argument("--json", action="store_true", help="the result as one line of JSON")
    return parser


def _directory(arguments: argparse.Namespace) -> Path:
    """Of a registered version's package, or what a path or hub id names."""
    from components.experiment.spec import ModelSpec
    from components.models.base.load import resolve_model
    from components.registry.versions import download_package
    from components.tracking.mlflow_client import check_tracking
    from workflows.named import trained_at

    if arguments.model.startswith(REGISTERED):
        check_tracking(_tracking(arguments))
        return download_package(arguments.model, _tracking(arguments))
    trained = trained_at(arguments.model)
    if trained is not None:
        return trained
    directory = Path(arguments.model).expanduser()
    return directory.absolute() if directory.is_dir() else resolve_model(ModelSpec(path=arguments.model))


def _tracking(arguments: argparse.Namespace) -> str:
    from components.tracking.mlflow_client import tracking_uri

    return str(arguments.tracking_uri or tracking_uri())


def _scorer(arguments: argparse.Namespace, source: Exportable, scratch: Path) -> Scorer | None:
    from components.conversations.readers.read import read_conversations
    from components.inference.merge_check import Scorer

    if arguments.data is None:
        return None
    conversations = read_conversations(arguments.data, unknown_keys=arguments.unknown_keys).conversations
    return Scorer(conversations, source.chat_format, scratch, arguments.max_tokens)


def _keep(arguments: argparse.Namespace, check: MergeCheck) -> None:
    """On the version, where it is one: whoever serves it merged shall know."""
    if arguments.model.startswith(REGISTERED):
        from components.registry.version_tags import tag_version

        tag_version(arguments.model, {"turnwise.merge": check.sentence()}, _tracking(arguments))


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def _sentence(result: dict[str, Any]) -> str:
    lines = [f"{result['directory']}: {result['source']} in the layout {result['layout']}"]
    if "dtype" in result:
        lines[0] += f", {result['dtype']}"
    if result["layout"] == "chatglm" and "tokenizer.model" not in result["files"]:
        lines.append("The base's directory had no tokenizer.model and *.py files to copy; servers want them beside it.")
    if "divergence" in result:
        lines.append(f"Merged and adapter: {result['divergence']['sentence']}")
    if "merge" in result:
        lines.append(f"Merging: {result['merge']['sentence']}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
