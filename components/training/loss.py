"""The loss: summed over targets, never averaged here. Logits are computed only at scored positions.

B rows, T tokens, N scored positions, H hidden size, V vocabulary. These letters are used in this file only.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from components.conversations.chat_formats.rendered import IGNORE_INDEX
from components.data.attention_masks import mask_form, sees_whole_conversations
from components.data.batch import Batch
from components.data.model_inputs import Inputs, model_inputs
from components.models.packed_attention import conversations_apart, suits_kernel
from components.models.precision import computing, scores_dtype
from components.training.head_loss import is_plain, weighted_loss_sum
from components.training.lm_head_check import decoder_and_head, why_whole_logits
from components.training.packed_isolation import isolates_packed_rows, unscored_batch

log = logging.getLogger(__name__)
Scored = TypeVar("Scored")
MAX_LOGITS_AT_ONCE = 2**25  # 128 MiB in float32: 512 targets of a 65k vocabulary


def target_losses(hidden_NH: Tensor, head: nn.Module, labels_N: Tensor) -> Tensor:
    """Returns the cross entropy of each scored position in nats, float32 [N], computed through the head in chunks.

    The logits of a chunk are recomputed in the backward pass, so at most MAX_LOGITS_AT_ONCE exist at any time. A plain head's
    gradient is made at once (head_loss.py): this is for evaluations, and for heads with adapters or a bias.
    """
    return torch.cat([_chunk_losses(head, hidden, labels) for hidden, labels in _chunks(hidden_NH, head, labels_N)])


class TargetScores(NamedTuple):
    """The scored positions of a batch, each float32 [N], never with a gradient.

    `losses_N` as target_losses has them, to the last bit. `right_N` is 1 where the likeliest token is the label, else 0.
    `stop_N` is the probability that the next token is a stop token: that the model ends its turn there.
    """

    losses_N: Tensor
    right_N: Tensor
    stop_N: Tensor


def target_scores(hidden_NH: Tensor, head: nn.Module, labels_N: Tensor, stop_token_ids: Sequence[int]) -> TargetScores:
    """As target_losses, with what else the same logits say, chunk by chunk."""
    chunks = _chunks(hidden_NH, head, labels_N)
    scored = [scores_of_logits(head(hidden).float(), labels, stop_token_ids) for hidden, labels in chunks]
    return TargetScores(*map(torch.cat, zip(*scored, strict=True)))


def scores_of_logits(logits_nV: Tensor, labels_n: Tensor, stop_token_ids: Sequence[int]) -> TargetScores:
    losses_n = F.cross_entropy(logits_nV, labels_n, reduction="none")
    right_n = logits_nV.argmax(dim=1) == labels_n
    # loss = log of the sum - logit of the label: the sum over the vocabulary is not made a second time.
    log_sums_n1 = losses_n[:, None] + logits_nV.gather(1, labels_n[:, None])
    stop_n = (logits_nV[:, list(stop_token_ids)] - log_sums_n1).exp().sum(dim=1)
    return TargetScores(losses_n, right_n.float(), stop_n)


def _chunks(hidden_NH: Tensor, head: nn.Module, labels_N: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields hidden states and labels of so many positions that their logits are at most MAX_LOGITS_AT_ONCE."""
    positions = positions_at_once(head)
    return zip(torch.split(hidden_NH, positions), torch.split(labels_N, positions), strict=True)


def positions_at_once(head: nn.Module) -> int:
    return max(1, MAX_LOGITS_AT_ONCE // len(cast(Tensor, head.weight)))


def scored_positions(batch: Batch) -> tuple[Tensor, Tensor]:
    """Returns the (row, column) indices of the targets, int64 [N] each.

    For a batch without targets it is one position of weight 0: every worker must take part in the backward pass.
    """
    rows_N, columns_N = (batch.labels_BT != IGNORE_INDEX).nonzero().T if batch.targets_2N is None else batch.targets_2N
    if len(rows_N) == 0:
        rows_N = columns_N = torch.zeros(1, dtype=torch.long, device=batch.labels_BT.device)
    return rows_N, columns_N


def _chunk_losses(head: nn.Module, hidden_nH: Tensor, labels_n: Tensor) -> Tensor:
    def losses(hidden: Tensor) -> Tensor:
        return F.cross_entropy(head(hidden).float(), labels_n, reduction="none")

    if torch.is_grad_enabled():
        return cast(Tensor, checkpoint(losses, hidden_nH, use_reentrant=False))
    return losses(hidden_nH)


def loss_of_hidden(hidden_NH: Tensor, head: nn.Module, labels_N: Tensor, weights_N: Tensor) -> Tensor:
    """Returns the weighted sum of the losses of scored positions, in nats."""
    if is_plain(head):
        return weighted_loss_sum(hidden_NH, head, labels_N, weights_N, positions_at_once(head))
    return (target_losses(hidden_NH, head, labels_N) * weights_N).sum()


def loss_of_logits(logits_NV: Tensor, labels_N: Tensor, weights_N: Tensor) -> Tensor:
    """As loss_of_hidden, of float32 logits."""
    return (F.cross_entropy(logits_NV, labels_N, reduction="none") * weights_N).sum()


class ScoredModel(nn.Module):
    """A causal LM (with or without adapters) that returns losses instead of logits.

    It is a module of its own, so that DistributedDataParallel can wrap it and FSDP can know its forward passes: forward,
    losses and isolates_packed_rows. Nothing else may use the weights of a sharded model; `scores` is for whole models. If a
    model does more to its logits than its head does (soft caps, scales), the whole logits are used instead
    (lm_head_check.py), and the log says so.
    """

    def __init__(self, model: nn.Module, *, precision: str, attention: str, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self.attention = attention
        self.precision, self.device = precision, device
        self.mask_form = mask_form(model.config)
        # A tuple keeps them out of the module tree: they are parts of `model` already, and must not be registered twice.
        self._parts = decoder_and_head(model)
        # Whether packed rows are computed conversation by conversation, without masks: once that was tried (trial_runner.py).
        self.keeps_apart = False
        # Why they are needed, if they are. Determined in the first pass, while a sharded model is gathered.
        self.whole_logits: str | None = None

    def forward(self, batch: Batch, scale: float = 1.0) -> Tensor:
        """Returns scale x the weighted loss summed over the batch's targets, in nats: a scalar that always has a gradient."""
        positions = scored_positions(batch)
        weights_N = scale * batch.weights_BT[positions]
        return self.over_targets(
            batch,
            positions,
            lambda hidden_NH, head, labels_N: loss_of_hidden(hidden_NH, head, labels_N, weights_N),
            lambda logits_NV, labels_N: loss_of_logits(logits_NV, labels_N, weights_N),
        )

    def losses(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Returns unweighted losses [N] of the scored positions, and their (row, column) indices (scored_positions)."""
        positions = scored_positions(batch)

        def of_logits(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
            return F.cross_entropy(logits_NV, labels_N, reduction="none")

        return self.over_targets(batch, positions, target_losses, of_logits), positions

    def accumulating(self) -> contextlib.AbstractContextManager[Any]:
        """For several forward and backward passes between which no weight changes: each weight is cast to 16 bits once.

        Autocast keeps a cast until its outermost context ends. Of a pass without gradients it would keep one without any, so
        the head must have been looked at before. Where layers are computed again, their casts would otherwise be freed layer
        by layer, so there nothing is kept.
        """
        if self.whole_logits is None or getattr(self.model, "is_gradient_checkpointing", False):
            return contextlib.nullcontext()
        return computing(self.precision, self.device)

    def evaluating(self) -> contextlib.AbstractContextManager[Any]:
        """For several passes without gradients between which no weight changes: each weight that may be trained is cast once.

        At the end of its forward pass one batch has the casts of all layers, so memory has them in any case.
        """
        return computing(self.precision, self.device)

    @property
    def head(self) -> nn.Module:
        """With its adapter, if it has one. May be no module where the whole logits are used."""
        return cast(nn.Module, self._parts[1])

    @property
    def may_keep_apart(self) -> bool:
        """Whether it pays: torch has a kernel for all conversations at once, or loses nothing by one after the other."""
        if self.attention != "sdpa" or not sees_whole_conversations(self.model.config):
            return False
        on_gpu = self.device.type == "cuda" and self.precision == "bf16" and suits_kernel(self.model.config)
        return self.device.type == "cpu" or on_gpu

    def isolates_packed_rows(self, apart: bool = False) -> bool:
        """May raise whatever a model's class does where it expects a mask, and `apart` there is none."""
        with computing(self.precision, self.device):
            return isolates_packed_rows(self.model, self.attention, self.device, apart=apart)

    def keep_apart_if_it_can(self) -> None:
        """For one worker alone, which need not agree with others."""
        self.keeps_apart = self.may_keep_apart and self.isolates_packed_rows(apart=True)

    def attending(self, batch: Batch) -> contextlib.AbstractContextManager[None]:
        """For a forward pass over this batch together with its backward pass.

        Of one conversation a row a GPU computes the rows as they are; only, transformers no longer looks for restarts, which
        the host would wait for. A CPU's backward pass is faster conversation by conversation (cpu_attention.py).
        """
        if not (self.keeps_apart and batch.lengths and batch.subtree_ends_BT is None):
            return contextlib.nullcontext()
        by_row = not batch.has_restarts and self.device.type != "cpu"
        return conversations_apart(self.model, () if by_row else batch.lengths, self.device)

    def scores(self, batch: Batch, stop_token_ids: Sequence[int]) -> tuple[TargetScores, tuple[Tensor, Tensor]]:
        """As `losses`, with what else the same pass says of each scored position. Without gradients."""
        positions = scored_positions(batch)
        with torch.no_grad():
            found = self.over_targets(
                batch,
                positions,
                lambda hidden_NH, head, labels_N: target_scores(hidden_NH, head, labels_N, stop_token_ids),
                lambda logits_NV, labels_N: scores_of_logits(logits_NV, labels_N, stop_token_ids),
            )
        return found, positions

    def over_targets(
        self,
        batch: Batch,
        positions: tuple[Tensor, Tensor],
        of_hidden: Callable[[Tensor, nn.Module, Tensor], Scored],
        of_logits: Callable[[Tensor, Tensor], Scored],
    ) -> Scored:
        """Returns what one of the two functions says of the scored positions.

        Args:
            of_hidden: takes hidden states [N, H], the head, and labels [N].
            of_logits: takes float32 logits [N, V] and labels [N]; used where the head alone does not make the logits.
        """
        if self.whole_logits is None:
            self.look_at_head()
        labels_N = batch.labels_BT[positions].clamp(min=0)  # of a batch without targets it is any label
        decoder, head = self._parts
        shape_BT = batch.token_ids_BT.shape
        inputs = self._inputs(batch)
        with computing(self.precision, self.device):
            if not self.whole_logits:
                hidden_BTH = decoder(**inputs, use_cache=False).last_hidden_state.view(*shape_BT, -1)
                return of_hidden(hidden_BTH[positions], head, labels_N)
            logits_BTV = self.model(**inputs, use_cache=False).logits.view(*shape_BT, -1)
            return of_logits(logits_BTV[positions].float(), labels_N)

    def _inputs(self, batch: Batch) -> Inputs:
        return model_inputs(batch, self.attention, self.mask_form, scores_dtype(self.precision))

    def look_at_head(self) -> None:
        """Determines whether logits can be computed at scored positions only. A sharded model must be within a pass."""
        token_ids_BT = torch.arange(4, device=self.device)[None]
        batch = unscored_batch(token_ids_BT, token_ids_BT)
        inputs = self._inputs(batch)
        # A head with dropout draws here, and a trial that is resumed looks again: its next step must draw the same numbers.
        drawing_nothing = torch.random.fork_rng([self.device] if self.device.type == "cuda" else [])
        with drawing_nothing, computing(self.precision, self.device), self.attending(batch):
            self.whole_logits = why_whole_logits(self.model, inputs)
        if self.whole_logits:
            log.warning("logits are computed at all positions, which takes memory: %s", self.whole_logits)
        else:
            log.info("logits are computed at scored positions only")
