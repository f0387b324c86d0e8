"""What child processes of the kit do in its tests: modules of their own, which a new process imports quickly."""

import time

from experiments.benchmarks.gpu_kit.checks import measured


def say_and_end(child, word):
    yield measured(f"the word of process {child.rank} of {child.count}", word)


def first_waits_for_the_broken_second(child):
    yield measured("before", "said")
    if child.rank == 1:
        raise ValueError("the second is broken")
    time.sleep(600)


def wait(child):
    yield measured("before", "said")
    time.sleep(600)
