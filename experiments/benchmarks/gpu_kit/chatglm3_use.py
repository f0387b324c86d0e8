"""What becomes of a trained ChatGLM3: loaded again, merged into its base, and talked to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from components.conversations.chat_formats.chat_format import ChatFormat
from components.conversations.messages import Message
from components.data.prepare import PreparedDataset
from components.experiment.spec import LoraMethod, TrialSpec
from components.inference.generate import reply_to
from components.inference.merge_check import MAX_DIFFERENCE, divergence, fixed_rows, next_tokens
from components.models.adapters import load_adapter, merge
from components.models.base.load_base import load_base_model
from components.models.base.reference import BaseReference
from components.models.chatglm.weight_files import shards_of, tensors_of
from components.models.load_trained import ADAPTER, LoadedModel, base_of, load_trained, package
from components.records.events import Progress
from components.training.evaluate import score
from experiments.benchmarks.gpu_kit.cases import release_memory
from experiments.benchmarks.gpu_kit.checks import Check, measured, passed_if
from experiments.benchmarks.gpu_kit.settings import Settings

# Of the loss, which the same kernels compute of the same weights: only what is rounded in another order may differ.
SAME = 1e-3
NEW_TOKENS = 64
QUESTION = (Message(role="user", content="Who are you, and what can you do?"),)


def converted_as_written(directory: Path, model: PreTrainedModel) -> Check:
    """Compares weights of the first layer and the last, embeddings and head with the files, bit by bit."""
    stored = {key: tensor for shard in shards_of(directory) for key, tensor in tensors_of(shard)}
    first, last = (f"transformer.encoder.layers.{layer}" for layer in (0, model.config.num_hidden_layers - 1))
    queries, keys = (
        heads * model.config.head_dim for heads in (model.config.num_attention_heads, model.config.num_key_value_heads)
    )
    attention = model.model.layers[0].self_attn
    parts = stored[f"{first}.self_attention.query_key_value.weight"].read().split([queries, keys, keys])
    pairs = [
        *zip((layer.weight for layer in (attention.q_proj, attention.k_proj, attention.v_proj)), parts, strict=True),
        (model.model.layers[-1].mlp.gate_up_proj.weight, stored[f"{last}.mlp.dense_h_to_4h.weight"].read()),
        (model.get_input_embeddings().weight, stored["transformer.embedding.word_embeddings.weight"].read()),
        (model.get_output_embeddings().weight, stored["transformer.output_layer.weight"].read()),
    ]
    equal = sum(torch.equal(weight.detach(), written.to(weight)) for weight, written in pairs)
    return passed_if(
        equal == len(pairs),
        "converted weights are those that were written, bit by bit",
        f"{equal} of {len(pairs)} equal",
    )


def use_what_was_trained(
    name: str,
    checkpoint: Path,
    progress: Progress,
    dataset: PreparedDataset,
    settings: Settings,
    *,
    spec: TrialSpec,
    max_tokens: int,
) -> Iterator[Check]:
    """Packages a checkpoint, loads the package, scores it, talks to it, and merges it."""
    began = time.perf_counter()
    package(checkpoint, settings.scratch / f"{name} packaged")
    loaded = load_trained(settings.scratch / f"{name} packaged", device=settings.device)
    yield same_loss(name, loaded, progress, dataset, max_tokens=max_tokens, seconds=time.perf_counter() - began)
    yield talks(name, loaded, settings)
    rows = fixed_rows(loaded.chat_format)
    assert isinstance(spec.method, LoraMethod)
    if spec.method.quantize is None:
        yield merged_in_float32(name, loaded.model, rows)
        return
    adapted = next_tokens(loaded.model, rows)
    del loaded
    release_memory()
    found = divergence(adapted, next_tokens(_merged_into_whole_weights(checkpoint, settings), rows))
    asked = f"{name}: merged into whole weights (random ones lose more in 4 bits than trained ones)"
    yield measured(asked, found.sentence(), mean=found.mean)


def merged_in_float32(name: str, model: PreTrainedModel, rows: list[list[int]]) -> Check:
    """As an export compares them, so that nothing but the merging itself can differ."""
    whole = model.float()
    adapted = next_tokens(whole, rows)
    found = divergence(adapted, next_tokens(merge(whole), rows))
    return passed_if(
        found.mean <= MAX_DIFFERENCE,
        f"{name}: merged beside the adapter, at most {MAX_DIFFERENCE} nats apart on average",
        found.sentence(),
        mean=found.mean,
        largest=found.largest,
    )


def same_loss(
    name: str, loaded: LoadedModel, progress: Progress, dataset: PreparedDataset, *, max_tokens: int, seconds: float
) -> Check:
    losses = score(loaded, dataset.eval, max_tokens=max_tokens, rows_per_batch=1)
    loss = sum(each.loss_sum for each in losses) / sum(each.num_targets for each in losses)
    apart = abs(loss / progress.eval_loss - 1)
    return passed_if(
        apart <= SAME,
        f"{name}: saved, packaged and loaded again it has the loss it had, within {SAME:.1%}",
        f"{loss:.4f} and {progress.eval_loss:.4f}, {apart:.1g} of it apart; packaged and loaded in {seconds:.1f} s",
        apart=apart,
    )


def talks(name: str, loaded: LoadedModel, settings: Settings) -> Check:
    endless = replace(loaded, chat_format=cast(ChatFormat, _Endless(loaded.chat_format)))
    replies, seconds = [], 0.0
    for _ in range(2):
        began = time.perf_counter()
        replies.append(reply_to(endless, QUESTION, max_new_tokens=NEW_TOKENS))
        seconds = time.perf_counter() - began  # of the second one: the first chooses kernels
    one, other = replies
    same = one.text == other.text and one.new_tokens == other.new_tokens == NEW_TOKENS
    rate = other.new_tokens / seconds
    return passed_if(
        same,
        f"{name}: {NEW_TOKENS} tokens, twice the same",
        f"{one.new_tokens} and {other.new_tokens}, {'the same' if one.text == other.text else 'others'}; {rate:.1f} tokens/s",
        tokens_per_second=rate,
    )


class _Endless:
    """A chat format in which a reply ends at no token that a model says, so that it has as many as are asked for."""

    def __init__(self, chat_format: ChatFormat) -> None:
        self._chat_format = chat_format

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        return (self._chat_format.pad_token_id,)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._chat_format, name)


def _merged_into_whole_weights(checkpoint: Path, settings: Settings) -> PreTrainedModel:
    """A quantized base has no weights to merge into: an export takes the published ones."""
    base = base_of(BaseReference.read(checkpoint)).model_copy(update={"dtype": "bf16"})
    return merge(load_adapter(load_base_model(base, device=settings.device), checkpoint / ADAPTER))
