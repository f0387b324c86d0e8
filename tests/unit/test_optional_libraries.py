"""Libraries that only some searches need: what is missing is said where it is asked for, and nothing else asks."""

import importlib
import sys
from types import SimpleNamespace

import pytest
import torch
from bitsandbytes import cextension

from components.cluster.driver.trial_control import TrialController
from components.conversations.readers.data_problems import ConversationError
from components.conversations.readers.read import read_conversations
from components.conversations.tokenizers.chatglm3 import convert_tokenizer
from components.errors import InputError
from components.experiment.base_precisions import BaseVariant
from components.experiment.load_experiment import load_experiment
from components.experiment.spec import FullMethod, LoraMethod, ModelSpec, OptimizerSpec, TrialSpec
from components.models.base.load_base import load_base_model
from components.models.base.wheel_model import fetch
from components.models.load_trained import load_trained
from components.models.quantization_backend import missing_package, why_unusable
from components.records.commands import CloneTrial
from components.records.histories import TrialHistories
from components.registry import model_package
from components.registry.checked_export import ExportRequest, export_model
from components.registry.model_package import requirements_of
from components.search.prepare_search import prepare_search
from components.tracking import library_versions
from components.training.workers import UnfitWorkersError
from tests.support.inbox import Inbox
from tests.support.sessions import FULL, LORA, reports, session
from tests.support.three_trials import RECORDS

NF4 = TrialSpec(method=LoraMethod(quantize="nf4"))
PAGED = TrialSpec(method=FullMethod(), optimizer=OptimizerSpec(name="paged_adamw_8bit"))
NO_PACKAGE = "this Python has no package bitsandbytes; install a bitsandbytes that works here"
LOST = "libcudart.so.13: cannot open shared object file"


@pytest.fixture
def without(monkeypatch):
    """Hides a library: Python then finds no such module (the entry None of sys.modules)."""
    return lambda name: monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def broken(monkeypatch, tmp_path):
    """A bitsandbytes that is installed, and does not fit this machine."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "bitsandbytes"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "bitsandbytes").mkdir()
    (tmp_path / "bitsandbytes" / "__init__.py").write_text(f"raise ImportError('{LOST}')")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()


# bitsandbytes


def test_only_quantized_bases_and_the_8_bit_optimizer_need_it(without):
    assert missing_package([NF4, PAGED, LORA, FULL]) == ""
    without("bitsandbytes")
    assert missing_package([LORA, FULL]) == ""
    ways_out = "or do without it (method.quantize: null, optimizer.name: adamw)"
    assert missing_package([LORA, NF4]) == f"method.quantize=nf4: {NO_PACKAGE}, {ways_out}"
    both = "method.quantize=nf4 and optimizer.name=paged_adamw_8bit"
    assert missing_package([NF4, PAGED]) == f"{both}: {NO_PACKAGE}, {ways_out}"


def test_one_that_cannot_be_imported_is_a_reason_of_its_own(broken):
    reason = f"bitsandbytes is installed here, but cannot be imported ({LOST})"
    assert missing_package([NF4]).startswith(f"method.quantize=nf4: {reason}; install a bitsandbytes that works here")
    assert missing_package([FULL]) == ""
    assert missing_package([LORA]) == (
        f"method.kind=lora: {reason}, and peft imports it for every adapter; mend or uninstall it"
    )


def test_one_without_its_cuda_library_is_of_no_use_beside_a_gpu(monkeypatch):
    monkeypatch.setattr(cextension, "lib", cextension.ErrorHandlerMockBNBNativeLibrary(f"{LOST}\nsecond line"))
    assert why_unusable() == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert why_unusable() == f"bitsandbytes is installed here, but its CUDA library cannot be loaded ({LOST})"


@pytest.mark.parametrize("setting", ["search.space.lora.method.quantize=int8", "trial.optimizer.name=paged_adamw_8bit"])
def test_a_search_whose_workers_are_here_is_refused(toy_search, without, setting):
    without("bitsandbytes")
    experiment = load_experiment("toy.yaml", [setting])
    with pytest.raises(InputError, match=rf"^{setting.split('.', 1)[1].split('.')[-2]}\.\w+=\w+: {NO_PACKAGE}"):
        prepare_search(experiment)


def test_a_search_whose_workers_are_elsewhere_is_warned(toy_search, without, monkeypatch):
    without("bitsandbytes")
    monkeypatch.setenv("RAY_ADDRESS", "ray-head:6379")
    said = []
    experiment = load_experiment("toy.yaml", ["search.space.lora.method.quantize=nf4"])
    prepare_search(experiment, on_message=said.append).lock.close()
    (warning,) = [line for line in said if "bitsandbytes" in line]
    assert warning.startswith(f"Warning: method.quantize=nf4: {NO_PACKAGE}")
    assert warning.endswith("If the workers lack it too, each trial that needs it fails")


def test_a_worker_without_it_fails_the_trials_that_need_it_and_trains_the_others(toy, tmp_path, without):
    without("bitsandbytes")
    of = session(toy, tmp_path)
    of.warm_up(BaseVariant("fp32", "nf4"))  # says nothing: there is no trial yet to say it to
    for spec in (NF4, PAGED):
        with pytest.raises(InputError, match=rf"{NO_PACKAGE}.* \(1 of 1 workers\)$") as caught:
            of.start("trial", spec)
        assert not isinstance(caught.value, UnfitWorkersError)  # which would end the search
    assert reports(of, LORA)[-1].done


class _OneOfTwo:
    """The worker that has the package, beside one that lacks it."""

    def __init__(self, workers):
        self.__dict__.update(vars(workers), count=2, parallel="ddp", worker_rank=0)

    def sum(self, values):
        return [value + 1.0 for value in values]


def test_a_worker_that_has_it_does_not_wait_for_one_that_lacks_it(toy, tmp_path):
    of = session(toy, tmp_path)
    of.workers = _OneOfTwo(of.workers)
    with pytest.raises(
        InputError, match=r"^another worker of this trial cannot use bitsandbytes; .* \(1 of 2 workers\)$"
    ):
        of.start("trial", NF4)


@pytest.mark.parametrize("address", ["", "ray-head:6379"])
def test_a_clone_that_needs_it_is_refused_where_the_workers_are_here(toy_search, without, monkeypatch, address):
    without("bitsandbytes")
    monkeypatch.setenv("RAY_ADDRESS", address)
    inbox = Inbox(CloneTrial(trial="1", changes={"method.quantize": "nf4"}))
    histories = TrialHistories([RECORDS[0]])
    context = SimpleNamespace(experiment=load_experiment("toy.yaml"))
    TrialController(context, None, histories, None, inbox).process_requests()
    (reply,) = inbox.replies
    assert reply.accepted == bool(address), reply.message
    assert address or reply.message.startswith(f"method.quantize=nf4: {NO_PACKAGE}")


def test_what_was_trained_beside_a_quantized_base_says_what_it_needs(trials, without, tmp_path):
    checkpoint, _ = trials.trained("nf4")
    lora, _ = trials.trained("lora")
    without("bitsandbytes")
    told = f"^{checkpoint}: trained with method.quantize=nf4: {NO_PACKAGE}$"
    with pytest.raises(InputError, match=told):
        load_trained(checkpoint)
    with pytest.raises(InputError, match=told):
        export_model(ExportRequest(source=str(checkpoint), target=tmp_path / "merged"))
    assert not (tmp_path / "merged").exists()
    adapter = export_model(ExportRequest(source=str(checkpoint), target=tmp_path / "adapter", layout="adapter"))
    assert "adapter_model.safetensors" in adapter.files
    assert load_trained(lora).model
    with pytest.raises(InputError, match=f"^method.quantize=int8: {NO_PACKAGE}$"):
        load_base_model(ModelSpec(path=str(trials.model)), quantize="int8")


# What a run and a version say of their libraries


def test_a_version_requires_what_it_needs(trials, tmp_path, monkeypatch):
    needed = {}
    for method in ("lora", "full", "nf4"):
        package = trials.packaged(method, tmp_path / method)
        needed[method] = {
            name for name, _, version in (line.partition("==") for line in requirements_of(package)) if version
        }
    assert {*model_package.SERVED_BY} == needed["full"] == needed["lora"] - {"sentencepiece"}
    assert needed["nf4"] - needed["lora"] == {"bitsandbytes"}
    monkeypatch.setattr(model_package, "SERVED_BY", ("torch", "is-not-installed"))
    torch_line, other = requirements_of(tmp_path / "full")
    assert torch_line.startswith("torch==")
    assert "+" not in torch_line
    assert other == "is-not-installed"


def test_an_adapter_on_the_bundled_model_requires_what_converts_it(trials, tmp_path):
    package = trials.packaged("lora", tmp_path / "package")
    file = package / "base.json"
    file.write_text(file.read_text().replace(str(trials.model), "smollm2-135m-instruct"))
    assert any(line.startswith("gguf==") for line in requirements_of(package))


def test_the_versions_of_what_is_not_installed_are_left_out(monkeypatch):
    monkeypatch.setattr(library_versions, "LIBRARIES", ("torch", "is-not-installed"))
    assert library_versions.library_versions().keys() == {"torch", "python"}


# Others


def test_the_bundled_model_is_not_fetched_where_it_cannot_be_converted(without, tmp_path, monkeypatch):
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path))
    without("gguf")
    with pytest.raises(InputError, match=r"^model\.path=smollm2-135m-instruct: this Python has no package gguf"):
        fetch("smollm2-135m-instruct")
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_of_chatglm3_needs_sentencepiece(without, tmp_path):
    without("sentencepiece")
    file = tmp_path / "tokenizer.model"
    file.write_bytes(b"")
    with pytest.raises(
        InputError, match=f"^{file}: is read by the package sentencepiece, which cannot be imported here"
    ):
        convert_tokenizer(file)


def test_a_dataset_of_the_hub_needs_datasets(without):
    without("datasets")
    with pytest.raises(ConversationError, match="is loaded by the package datasets, which cannot be imported here"):
        read_conversations("hf://someone/something")
