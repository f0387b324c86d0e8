"""Whether this process can use bitsandbytes: QLoRA and the 8-bit optimizer need it, and nothing else does."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from importlib.util import find_spec

import torch

from components.errors import InputError
from components.experiment.spec import LoraMethod, Method, TrialSpec

PACKAGE = "bitsandbytes"
INSTALL_ADVICE = f"install a {PACKAGE} that works here"
WAYS_OUT = f"{INSTALL_ADVICE}, or do without it (method.quantize: null, optimizer.name: adamw)"


def missing_package(trials: Iterable[TrialSpec], advice: str = WAYS_OUT) -> str:
    """Returns what this Python lacks for one of these trials, with the way out; "" if nothing.

    A machine without a GPU may have the package. Imports it, if one of them needs it.
    """
    trials = list(trials)
    settings = dict.fromkeys(setting for trial in trials for setting in _settings(trial))
    if settings:
        reason = why_unusable()
        return f"{' and '.join(settings)}: {reason}; {advice}" if reason else ""
    if any(isinstance(trial.method, LoraMethod) for trial in trials) and (reason := _why_broken()):
        return f"method.kind=lora: {reason}, and peft imports it for every adapter; mend or uninstall it"
    return ""


def check_loadable(method: Method, source: object) -> None:
    """Raises InputError if what was trained by this method cannot be loaded in this Python."""
    if missing := missing_package([TrialSpec(method=method)], INSTALL_ADVICE):
        raise InputError(f"{source}: trained with {missing}")


def why_unusable() -> str:
    """Returns the reason, "" if bitsandbytes works here, as far as can be seen without computing."""
    if find_spec(PACKAGE) is None:
        return f"this Python has no package {PACKAGE}"
    return _why_broken() or _why_without_cuda()


def _settings(trial: TrialSpec) -> Iterator[str]:
    """Yields what bitsandbytes is needed for."""
    if isinstance(trial.method, LoraMethod) and trial.method.quantize is not None:
        yield f"method.quantize={trial.method.quantize}"
    if trial.optimizer.name == "paged_adamw_8bit":
        yield f"optimizer.name={trial.optimizer.name}"


def _why_broken() -> str:
    if find_spec(PACKAGE) is None:
        return ""
    try:
        importlib.import_module(PACKAGE)
    except Exception as error:  # noqa: BLE001 - a library that does not fit the machine may raise anything
        return f"{PACKAGE} is installed here, but cannot be imported ({_first_line(error)})"
    return ""


def _why_without_cuda() -> str:
    """bitsandbytes is imported even where its CUDA library cannot be loaded, and raises at the first use."""
    extension = importlib.import_module(f"{PACKAGE}.cextension")
    broken = getattr(extension, "ErrorHandlerMockBNBNativeLibrary", ())
    if not torch.cuda.is_available() or not isinstance(extension.lib, broken):
        return ""
    return (
        f"{PACKAGE} is installed here, but its CUDA library cannot be loaded ({_first_line(extension.lib.error_msg)})"
    )


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
