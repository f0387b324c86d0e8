"""An exported adapter names its base as other machines know it, and plain peft loads it there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from peft import AutoPeftModelForCausalLM

from components.errors import InputError
from components.experiment.spec import LoraMethod, ModelSpec
from components.models.base.published_name import PublishedName, published_name
from components.models.load_trained import load_trained
from components.registry.checked_export import ExportRequest, export_model
from tests.support.programs import environment
from tests.support.serving import adapter_checkpoint
from tests.support.tiny_models import logits
from tests.support.toy import tiny_model_directory

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB_ID = "someone/tiny"
ASKS = """
import sys, torch
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1]).eval()
print(model(input_ids=torch.arange(12)[None]).logits.double().sum().item())
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A home of the hub's cache, with the base and nothing else."""
    home = tmp_path_factory.mktemp("hub")
    model = home / "hub" / "models--someone--tiny"
    tiny_model_directory(model / "snapshots" / COMMIT)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    return home


@pytest.fixture(scope="module")
def snapshot(cache):
    return cache / "hub" / "models--someone--tiny" / "snapshots" / COMMIT


@pytest.fixture(scope="module")
def checkpoint(snapshot, tmp_path_factory):
    """An adapter that was trained on the base by its hub id."""
    folder = adapter_checkpoint(tmp_path_factory.mktemp("trained"), snapshot, LoraMethod(rank=4), seed=1)
    reference = json.loads((folder / "base.json").read_text())
    reference["model"]["path"] = HUB_ID
    (folder / "base.json").write_text(json.dumps(reference))
    return folder


def config_in(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def test_a_machine_that_knows_the_base_by_its_hub_id_loads_the_adapter(cache, snapshot, checkpoint, tmp_path):
    offline = {**environment(), "HF_HOME": str(cache), "HF_HUB_OFFLINE": "1"}
    export = [sys.executable, "-m", "workflows", "export", str(checkpoint), "--layout", "adapter", "--json"]
    export += ["--out", str(tmp_path / "out")]
    exported = subprocess.run(export, env=offline, capture_output=True, text=True, check=True, timeout=200)
    assert json.loads(exported.stdout)["base_name"] == HUB_ID
    config = config_in(tmp_path / "out")
    assert (config["base_model_name_or_path"], config["revision"]) == (HUB_ID, COMMIT)
    moved = tmp_path / "elsewhere"  # another machine: its own cache, and none of these folders
    moved.mkdir()
    (cache / "hub").rename(moved / "hub")
    try:
        elsewhere = {**offline, "HF_HOME": str(moved)}
        asked = [sys.executable, "-c", ASKS, str(tmp_path / "out")]
        said = subprocess.run(asked, env=elsewhere, capture_output=True, text=True, check=True, timeout=200)
    finally:
        (moved / "hub").rename(cache / "hub")
    trained = json.loads((checkpoint / "base.json").read_text())
    trained["model"]["path"] = str(snapshot)
    (checkpoint / "base.json").write_text(json.dumps(trained))
    expected = logits(load_trained(checkpoint).model).double().sum().item()
    assert float(said.stdout) == pytest.approx(expected, rel=1e-5)


def test_a_base_of_a_directory_is_named_as_told(snapshot, tmp_path):
    trained = adapter_checkpoint(tmp_path / "trained", snapshot, LoraMethod(rank=4), seed=2)
    here = export_model(ExportRequest(source=str(trained), target=tmp_path / "here", layout="adapter"))
    assert here.base_name == config_in(tmp_path / "here")["base_model_name_or_path"] == str(snapshot)
    assert "Other machines know the base by another name" in str(here)
    there = export_model(
        ExportRequest(source=str(trained), target=tmp_path / "there", layout="adapter", base_name="our/base")
    )
    config = config_in(tmp_path / "there")
    assert (config["base_model_name_or_path"], config["revision"]) == ("our/base", None)
    assert "Other machines" not in str(there)
    assert AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "here")) is not None


def test_only_an_adapter_has_a_base_to_name(snapshot, tmp_path):
    with pytest.raises(InputError, match="--base-name x: only an adapter alone has a base; take --layout adapter"):
        export_model(ExportRequest(source=str(snapshot), target=tmp_path / "out", base_name="x"))


@pytest.mark.parametrize(
    ("path", "directory", "expected"),
    [
        ("org/model", "/cache/snapshots/abc", PublishedName(path="org/model", revision="abc")),
        ("org/model", "/elsewhere", PublishedName(path="org/model", revision="v1")),
        ("smollm2-135m-instruct", "/cache/x", None),
        ("s3://bucket/model", "/cache/x", None),
        ("/models/of-another-machine", "/cache/x", None),
        ("./model", "/cache/x", None),
        (str(Path(__file__).parent), "/cache/x", None),
    ],
)
def test_a_published_name_is_the_hubs_with_the_commit(path, directory, expected):
    assert published_name(ModelSpec(path=path, revision="v1"), Path(directory)) == expected
