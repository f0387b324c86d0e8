"""Proves the GPU paths on the card at hand, part by part: what was asked, what was seen, passed or not.

    python experiments/benchmarks/gpu.py --out runs/gpu                                 every part, in nine minutes
    python experiments/benchmarks/gpu.py --out runs/gpu --only equality,memory --minutes 4
    python experiments/benchmarks/gpu.py --out runs/gpu --device cpu --shapes tiny      the same code without a GPU

The models are random and made on the device; nothing is downloaded. Each part runs in a process of its own, so its time is
bounded and the others survive it. OUT/gpu.md and OUT/gpu.json are written anew after each part. The exit status is 1 if a
check failed. gpu_kit/parts.py lists the parts.
"""

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where `experiments` and `components` lie

from experiments.benchmarks.gpu_kit.command import main

if __name__ == "__main__":
    # It ends as by Ctrl-C, and so does the part that runs: that is in a session of its own.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main(sys.argv[1:], description=__doc__))
