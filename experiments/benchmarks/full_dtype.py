"""How many weights of a full fine-tune move at all, kept in float32 and in bfloat16.

    python experiments/benchmarks/full_dtype.py > experiments/benchmarks/full_dtype.md

A random Llama of 1.4 million parameters, its weights drawn as those of large models are (deviation 0.02), trained on 256
random tokens, at a constant learning rate and in bf16 (autocast) both times. AdamW moves a weight by about the learning
rate at a time, and bfloat16 has 8 significant bits: what is less than 1/512 of a weight is rounded away.
"""

from __future__ import annotations

import argparse
import platform
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

CONFIG = LlamaConfig(
    vocab_size=2000, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4
)
ROWS, TOKENS = 8, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measured(dtype, arguments.steps, arguments.learning_rate) for dtype in (torch.float32, torch.bfloat16)]
    print(table(arguments, rows))


def measured(dtype: torch.dtype, steps: int, learning_rate: float) -> tuple[str, float, float, float]:
    """(dtype, share of the linear layers' weights that moved, loss before, loss after)."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).to(dtype)
    linear = {name: weight for name, weight in model.named_parameters() if "proj" in name}
    before = {name: weight.detach().clone() for name, weight in linear.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    token_ids = torch.randint(0, CONFIG.vocab_size, (ROWS, TOKENS), generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(steps):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=token_ids, labels=token_ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    moved = sum(int((weight != before[name]).sum()) for name, weight in linear.items())
    share = moved / sum(weight.numel() for weight in linear.values())
    return str(dtype).removeprefix("torch."), share, losses[0], losses[-1]


def table(arguments: argparse.Namespace, rows: list[tuple[str, float, float, float]]) -> str:
    lines = [
        "# Full fine-tuning with weights in float32 and in bfloat16",
        "",
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, torch {torch.__version__}: {arguments.steps} steps of AdamW at a"
        f" learning rate of {arguments.learning_rate:g}.",
        "Made by `python experiments/benchmarks/full_dtype.py > experiments/benchmarks/full_dtype.md`, which says on what.",
        "",
        "| weights | of the linear layers have moved | loss before | after |",
        "|---|---|---|---|",
    ]
    lines += [f"| {dtype} | {share:.1%} | {first:.2f} | {last:.2f} |" for dtype, share, first, last in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
