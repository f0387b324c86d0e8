"""The parts of experiments/benchmarks/gpu.py, and what runs them."""
