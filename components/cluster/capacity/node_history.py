"""Which nodes a cluster had at what time, and which slots ran on them. Ray still lists the nodes that are gone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from ray.exceptions import AuthenticationError
from ray.util.state import list_actors, list_nodes
from ray.util.state.exception import RayStateApiException

from components.errors import InputError

NODE_TYPE = "ray.io/node-group"
SLOT = "slot "  # the name of each Slot in Ray's list of actors begins with this
MAX_ROWS = 10_000


@dataclass(frozen=True, kw_only=True)
class NodeTime:
    """A node from when it joined to when it left (Unix seconds; None: it is up), and the slots whose workers it had."""

    kind: str
    node_id: str
    began: float
    ended: float | None
    slots: frozenset[str]


def node_history(address: str | None = None) -> list[NodeTime]:
    """Returns all nodes since the cluster began, oldest first. `address`: the dashboard's; by default that of RAY_ADDRESS.

    Raises InputError if no dashboard answers there, or it does not know who asks.
    """
    with _explained(address):
        slots, found = _slots_by_node(address), list_nodes(address=address, detail=True, limit=MAX_ROWS)
    nodes = [
        NodeTime(
            kind="head" if node.is_head_node else node.labels.get(NODE_TYPE, "node"),
            node_id=node.node_id,
            began=node.start_time_ms / 1000,
            ended=node.end_time_ms / 1000 if node.state == "DEAD" else None,
            slots=frozenset(slots.get(node.node_id, ())),
        )
        for node in found
    ]
    return sorted(nodes, key=lambda node: node.began)


@contextlib.contextmanager
def _explained(address: str | None) -> Iterator[None]:
    where = f"--address {address}" if address else "the cluster of RAY_ADDRESS, or of this machine"
    try:
        yield
    except AuthenticationError:
        raise InputError(
            f"{where} asks for a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the file that has it. A search"
            " that starts a Ray of its own takes that one's token with it when it ends"
        ) from None
    except (RayStateApiException, ConnectionError, ValueError) as error:
        reason = str(error).strip().partition(". ")[0]
        raise InputError(
            f"{where}: no dashboard that lists its nodes ({reason}); --address takes one such as http://HEAD:8265"
        ) from None


def _slots_by_node(address: str | None) -> dict[str, set[str]]:
    """Returns slots by node id. A slot and its workers share a placement group, which may cover several nodes."""
    actors = list_actors(address=address, detail=True, limit=MAX_ROWS)
    slot_of = {
        actor.placement_group_id: actor.repr_name.removeprefix(SLOT)
        for actor in actors
        if (actor.repr_name or "").startswith(SLOT)
    }
    found: dict[str, set[str]] = {}
    for actor in actors:
        if actor.node_id and actor.placement_group_id in slot_of:
            found.setdefault(actor.node_id, set()).add(slot_of[actor.placement_group_id])
    return found
