"""What each family of models can do, as a search finds out when it is opened.

    python experiments/benchmarks/model_families.py > experiments/benchmarks/model_families.md

Of the tiny configurations in tests/support/zoo.py, whose windows are shorter than the rows. tests/unit/test_families.py takes
each of them through training, saving, loading and replies (make families).
"""

from __future__ import annotations

import argparse
import logging
import platform
import sys
import time
import warnings
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where `experiments`, `tests` and `components` lie

from components.experiment.spec import LoraMethod
from components.models.attention_backend import usable_attention
from components.models.meta_tensors import empty_model
from components.models.target_modules import describe_left_out
from components.training.model_abilities import ModelAbilities, probe_model
from tests.support.zoo import FAMILIES, config_of

LONGEST = 128


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    print(table({family: row(config_of(family)) for family in FAMILIES}))


def row(config: PreTrainedConfig) -> tuple[str, ...]:
    abilities = probe_model(config, usable_attention("auto", config), longest=LONGEST)
    left_out = describe_left_out(empty_model(config, dtype=torch.float32, attention="eager"), LoraMethod())
    return abilities.attention, yes(abilities.packs), trees(abilities), yes(abilities.has_flash), left_out


def yes(able: bool) -> str:
    return "yes" if able else "no"


def trees(abilities: ModelAbilities) -> str:
    if abilities.takes_trees:
        return "one pass"
    return "separate rows" if "see each other" in abilities.why_no_trees else "separate rows (takes no such mask)"


def table(rows: dict[str, tuple[str, ...]]) -> str:
    able = sum(row[2] == "one pass" for row in rows.values())
    packed = sum(row[1] == "yes" for row in rows.values())
    lines = [
        "# What families of models can do",
        "",
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, torch {torch.__version__}, transformers"
        f" {transformers.__version__}: {len(rows)} families, of which {packed} keep packed conversations apart, and"
        f" {able} take a tree in one pass.",
        "Made by `python experiments/benchmarks/model_families.py > experiments/benchmarks/model_families.md`.",
        "",
        "| family | attention on CPUs | rows packed | trees | has flash_attention_2 | linear layers without adapters |",
        "|---|---|---|---|---|---|",
        *(f"| {' | '.join((family, *row))} |" for family, row in rows.items()),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
