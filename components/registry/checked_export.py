"""Exports a model as others load it, and checks that merged files answer what the adapter beside its base answers."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from components.conversations.readers.read import OnUnknownKeys, read_conversations
from components.errors import InputError
from components.experiment.spec import ModelSpec
from components.inference.merge_check import (
    Divergence,
    MergeCheck,
    Scorer,
    check_merge,
    divergence,
    fixed_rows,
    next_tokens,
)
from components.models.adapters import merge
from components.models.dtypes import DTYPES
from components.models.export import (
    Exportable,
    Layout,
    load_as_trained,
    load_on_published_base,
    open_exportable,
    reload_whole,
    write_adapter,
    write_whole,
)
from components.registry.load_by_name import directory_by_name, is_registered
from components.registry.version_tags import tag_version
from components.tracking.mlflow_access import tracking_uri


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What to export, and how.

    Args:
        source: models:/NAME@ALIAS or models:/NAME/VERSION, a directory, a hub id, or an adapter directory of peft's.
        target: a new or empty directory.
        layout: merged (transformers' layout, for every family; glm is its name for ChatGLM3), chatglm (ChatGLM3's own) or
            adapter (the LoRA adapter alone). By default glm for ChatGLM3, else merged.
        base: the model that an adapter directory belongs to.
        dtype: of the weights; by default that of the base.
        original_names: in the layout adapter, ChatGLM3's own module names.
        base_name: in the layout adapter, the name of its base for the program that will load it: a hub id, or a directory
            of that machine. By default the hub id that was trained on, with its commit, else the directory here.
        data: conversations on which the loss before and after merging is measured; a registered version keeps it as its
            tag turnwise.merge.
        unknown_keys: of `data`, as data.unknown_keys of an experiment.
        max_tokens: longer conversations of `data` lose their last turns.
        tracking: URI of the registry; by default MLFLOW_TRACKING_URI, else mlflow.db in the working directory.
    """

    source: str
    target: Path
    layout: Layout | None = None
    base: str | None = None
    dtype: Literal["fp16", "bf16", "fp32"] | None = None
    original_names: bool = False
    base_name: str | None = None
    data: str | Sequence[str] | None = None
    unknown_keys: OnUnknownKeys = "fail"
    max_tokens: int = 1024
    tracking: str | None = None


@dataclass(frozen=True, kw_only=True)
class Export:
    """What was written. `divergence` and `merge` are of adapters that were merged; `dtype` is None for an adapter alone.

    `base_name` is the name that an adapter has its base by.
    """

    source: str
    layout: Layout
    directory: Path
    files: tuple[str, ...] = ()
    dtype: str | None = None
    base_name: str | None = None
    divergence: Divergence | None = None
    merge: MergeCheck | None = None

    def sentences(self) -> list[str]:
        dtype = f", {self.dtype}" if self.dtype else ""
        lines = [f"{self.directory}: {self.source} in the layout {self.layout}{dtype}"]
        if self.layout == "chatglm" and "tokenizer.model" not in self.files:
            lines.append(
                "The base's directory had no tokenizer.model and *.py files to copy; servers want them beside it."
            )
        if self.base_name:
            lines.append(f"Its base: {self.base_name}")
            if Path(self.base_name).is_absolute():
                lines.append("Other machines know the base by another name: write it by --base-name")
        if self.divergence:
            lines.append(f"Merged and adapter: {self.divergence.sentence()}")
        if self.merge:
            lines.append(f"Merging: {self.merge.sentence()}")
        return lines

    def __str__(self) -> str:
        return "\n".join(self.sentences())


@dataclass(frozen=True, kw_only=True)
class _ScoreBefore:
    """The loss of the adapter beside its base, in nats per target, and the scorer that measured it."""

    scorer: Scorer
    loss: float


def export_model(request: ExportRequest) -> Export:
    """Writes the model, and deletes merged files again if they answer something else than the adapter beside its base.

    Raises ValueError for what cannot be exported as requested; InputError where the target is not empty.
    """
    target = request.target.expanduser().absolute()
    if target.exists() and any(target.iterdir()):
        raise InputError(f"target {request.target}: is not empty; name a new directory")
    with tempfile.TemporaryDirectory(prefix="turnwise-export-") as scratch:
        return _export(request, target, Path(scratch))


def _export(request: ExportRequest, target: Path, scratch: Path) -> Export:
    directory = directory_by_name(request.source, tracking=request.tracking)
    source = open_exportable(directory, ModelSpec(path=request.base) if request.base else None, scratch)
    layout: Layout = request.layout or ("glm" if source.is_chatglm3 else "merged")
    export = Export(source=request.source, layout=layout, directory=target)
    if layout == "adapter":
        name = write_adapter(source, target, original_names=request.original_names, base_name=request.base_name)
        return replace(export, files=_names(target), base_name=name)
    if request.base_name is not None:
        raise InputError(f"--base-name {request.base_name}: only an adapter alone has a base; take --layout adapter")
    dtype = DTYPES[request.dtype] if request.dtype else source.dtype
    export = replace(export, dtype=str(dtype).removeprefix("torch."))
    if source.adapter is None:
        write_whole(load_as_trained(source), source, layout, target, dtype)
        return replace(export, files=_names(target))
    # Ahead of the try: bad data must not delete a directory that the caller has made.
    before = _score_before(request, source, scratch)
    try:
        return _export_merged(request, export, source, dtype, before)
    except ValueError:
        shutil.rmtree(target, ignore_errors=True)  # it is not the model that was trained
        raise


def _export_merged(
    request: ExportRequest, export: Export, source: Exportable, dtype: torch.dtype, before: _ScoreBefore | None
) -> Export:
    found = _write_merged(source, export.layout, export.directory, dtype)
    export = replace(export, files=_names(export.directory), divergence=found)
    if before is None:
        return export
    after, num_targets = before.scorer.score(reload_whole(export.directory), precision=_precision_of_scores(source))
    check = MergeCheck(adapter_loss=before.loss, merged_loss=after, num_targets=num_targets)
    check.check(quantized=source.quantize is not None)
    if is_registered(request.source):
        tag_version(request.source, {"turnwise.merge": check.sentence()}, tracking_uri(given=request.tracking))
    return replace(export, merge=check)


def _write_merged(source: Exportable, layout: Layout, target: Path, dtype: torch.dtype) -> Divergence:
    """Writes the merged model, and compares what its files and the adapter beside its base answer. One model at a time.

    Raises ValueError if they answer something else.
    """
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


def _score_before(request: ExportRequest, source: Exportable, scratch: Path) -> _ScoreBefore | None:
    if request.data is None:
        return None
    conversations = read_conversations(request.data, unknown_keys=request.unknown_keys).conversations
    scorer = Scorer(conversations, source.chat_format, scratch, request.max_tokens)
    model = load_on_published_base(source) if source.quantize is None else load_as_trained(source)
    loss, _ = scorer.score(model, precision=_precision_of_scores(source))
    return _ScoreBefore(scorer=scorer, loss=loss)


def _precision_of_scores(source: Exportable) -> str:
    """In bf16, rounding moves the mean loss of a few hundred targets by more than merging may; quantized weights may more."""
    return "fp32" if source.quantize is None else source.precision


def _names(directory: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in directory.iterdir()))
