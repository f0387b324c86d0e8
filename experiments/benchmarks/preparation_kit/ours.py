"""Turnwise's preparation, as a search calls it."""

from __future__ import annotations

from pathlib import Path


def prepare_ours(file: Path, model: Path, out: Path, processes: int) -> int:
    from components.data.prepare import prepare
    from components.experiment.spec import DataSpec
    from components.storage.open_folder import folder_at

    data = DataSpec(train=str(file))
    storage = folder_at(out)
    dataset = prepare(data, model_path=model, chat_format="auto", storage=storage, processes=processes)
    print(
        f"{dataset.summary()}; splits {', '.join(str(store.path.stat().st_size) for store in dataset.stores.values())}"
    )
    return sum(len(store) for store in dataset.stores.values())
