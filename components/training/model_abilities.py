"""What a model can do, tried on a skeleton of its own class before anything starts: packed rows, trees, an attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from components.data.batch import Batch
from components.data.layout import Layout
from components.data.rows import RowStore, rows_of
from components.data.token_store import TokenStore
from components.experiment.spec import FLASH_ATTENTION
from components.models.attention_backend import usable_attention
from components.models.skeleton import skeletons
from components.models.token_id_check import rows_of as embedding_rows
from components.training.loss import ScoredModel
from components.training.packed_isolation import isolates_packed_rows
from components.training.tree_equality import tree_distance

CPU = torch.device("cpu")
LEAK = 1e-3  # in float32 on a CPU nothing but rounding is smaller
SAME = 1e-4  # of the logits; of 70 families tried those that see a tree's paths only stayed below 1e-6
UNTRIED = "even a skeleton of it is too large to be tried"
NO_MASKS = f"{FLASH_ATTENTION} takes no masks"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAbilities:
    """`packs`: conversations in one row do not see each other. `takes_trees`: a tree's paths are as rows of their own.

    `checkpoints`: its activations can be recomputed. `shards`: it names its layers. `has_flash`: its class knows flash
    attention. `why_not_packed` and `why_no_trees` are empty where it does.
    """

    attention: str
    checkpoints: bool = True
    shards: bool = True
    has_flash: bool = False
    why_not_packed: str = ""
    why_no_trees: str = ""

    @property
    def packs(self) -> bool:
        return not self.why_not_packed

    @property
    def takes_trees(self) -> bool:
        return not self.why_no_trees

    @property
    def layout(self) -> Layout:
        return "trees" if self.takes_trees else "separate"

    @property
    def reasons(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(filter(None, (self.why_not_packed, self.why_no_trees))))


_known: dict[tuple[str, str, int], ModelAbilities] = {}  # a search, its plan and its preview ask for the same


def probe_model(config: PreTrainedConfig, attention: str, *, longest: int) -> ModelAbilities:
    """Tries a model on a small one of its class with random weights: seconds, and little memory.

    Raises ValueError if the class has no such attention, or cannot be trained on text at all.

    Args:
        longest: the tokens of the longest row: windows that are not shorter do not matter.
    """
    key = config.to_json_string(use_diff=False), attention, longest
    if key not in _known:
        _known[key] = _tried(config, attention, longest)
    return _known[key]


def can_keep_apart(config: PreTrainedConfig, attention: str, *, longest: int) -> bool:
    """Whether a small model of this class computes packed conversations one by one, without masks, as if alone."""
    return any(_keeps_apart(model, attention) for model in skeletons(config, attention, longest=longest))


def laid_out(store: TokenStore, model: nn.Module, attention: str, *, longest: int) -> RowStore:
    """Returns the rows on which a loaded model is scored: those of the store, or of each sequence where it must be so."""
    if not store.has_forks:
        return store
    abilities = probe_model(cast(PreTrainedConfig, model.config), attention, longest=longest)
    return rows_of(store, separate=abilities.layout == "separate")


def _tried(config: PreTrainedConfig, attention: str, longest: int) -> ModelAbilities:
    # Which rows and paths are seen does not depend on the kernel, and this machine may have no GPU.
    kernel = usable_attention("auto", config) if attention == FLASH_ATTENTION else attention
    problem: Exception | None = None
    for model in skeletons(config, kernel, longest=longest):
        try:
            _train(model, kernel)
        except Exception as error:  # noqa: BLE001 - a class may raise anything, of a narrower model too
            problem = error
            continue
        return _abilities(model, attention, kernel)
    if problem is not None:
        raise ValueError(f"a {config.model_type} cannot be trained on text here: {_in_short(problem)}")
    return ModelAbilities(attention=attention, why_not_packed=UNTRIED, why_no_trees=UNTRIED)


def _abilities(model: PreTrainedModel, attention: str, kernel: str) -> ModelAbilities:
    others = model._compatible_flash_implementations  # of a class that cannot use every kernel
    return ModelAbilities(
        attention=attention,
        checkpoints=bool(model.supports_gradient_checkpointing),
        shards=bool(model._no_split_modules),
        has_flash=bool(model._supports_flash_attn) and FLASH_ATTENTION in (others or [FLASH_ATTENTION]),
        why_not_packed=_why_leaking(model, kernel),
        why_no_trees=NO_MASKS if attention == FLASH_ATTENTION else _why_other_paths(model, kernel),
    )


def _train(model: PreTrainedModel, attention: str) -> None:
    """Computes a loss and its gradients as a trial does. Raises whatever the model does."""
    model.train()
    ScoredModel(model, precision="fp32", attention=attention, device=CPU)(
        _scored_batch(embedding_rows(model))
    ).backward()
    model.zero_grad()
    model.eval()


def _scored_batch(rows: int) -> Batch:
    token_ids_BT = torch.arange(rows // 8, rows // 8 + 8)[None] % rows
    return Batch(
        token_ids_BT=token_ids_BT,
        labels_BT=torch.cat([token_ids_BT[:, 1:], torch.full((1, 1), -100)], dim=1),
        weights_BT=torch.ones(1, 8),
        position_ids_BT=torch.arange(8)[None],
        segment_ids_BT=torch.ones(1, 8, dtype=torch.int64),
    )


def _why_leaking(model: PreTrainedModel, attention: str) -> str:
    return "" if isolates_packed_rows(model, attention, CPU, LEAK) else "packed conversations would see each other"


def _keeps_apart(model: PreTrainedModel, attention: str) -> bool:
    scored = ScoredModel(model, precision="fp32", attention=attention, device=CPU)
    try:
        return scored.may_keep_apart and isolates_packed_rows(model, attention, CPU, LEAK, apart=True)
    except Exception:  # noqa: BLE001 - what a class does where it expects a mask
        return False


def _why_other_paths(model: PreTrainedModel, attention: str) -> str:
    try:
        distance = tree_distance(model, attention)
    except Exception as error:  # noqa: BLE001 - what a class does with a mask that it does not know
        return f"it takes no masks of trees ({_in_short(error)})"
    return "" if distance <= SAME else "the paths of a tree would see each other"


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
