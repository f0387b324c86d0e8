"""A server of this process on loopback, and adapters and versions of a tiny model for it."""

import contextlib
import threading

import torch
import uvicorn

from components.experiment.spec import ModelSpec, TrialSpec
from components.models.adapters import attach_lora, save_adapter
from components.models.base.load_base import load_base_model
from components.models.base.reference import BaseReference
from components.models.digest import model_digest
from components.models.load_trained import SPEC_FILE, package
from components.registry.chat_model import PACKAGE
from components.registry.package_digest import PACKAGE_DIGEST_TAG, package_digest
from components.serving.app import make_app
from components.serving.guard import LOOPBACK
from components.serving.limits import Limits
from components.serving.served_models import ServedModels
from components.tracking.mlflow_access import open_store
from tests.support.servers import free_port, until
from tests.support.toy import tiny_model_directory

UP_SECONDS = 60


class ServerHere:
    """Answers in a thread of this process. `models` are what it serves."""

    def __init__(self, models, **options):
        self.models = models
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        app = make_app(models, **{"hosts": LOOPBACK, "token": None, "follow_seconds": 0.1, **options})
        self.config = uvicorn.Config(app, port=self.port, log_level="error")
        self._server = uvicorn.Server(self.config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def start(self):
        self._thread.start()
        until(lambda: self._server.started, UP_SECONDS)

    def stop(self):
        self._server.should_exit = True
        self._thread.join(UP_SECONDS)


@contextlib.contextmanager
def serving(sources, limits=None, *, tracking=None, **options):
    """Yields a server of these models (name -> source)."""
    torch.set_num_threads(1)
    models = ServedModels(sources, limits or Limits(), tracking=tracking)
    models.open()
    server = ServerHere(models, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def adapter_checkpoint(folder, model, method, seed):
    """Returns a checkpoint whose adapter has moved from where it began, by numbers of that seed."""
    base = load_base_model(ModelSpec(path=str(model)))
    adapted = attach_lora(base, method)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    save_adapter(adapted, folder / "adapter")
    (folder / SPEC_FILE).write_text(TrialSpec(method=method, precision="fp32").model_dump_json())
    reference = BaseReference(model=ModelSpec(path=str(model)), digest=model_digest(model), chat_format="auto")
    reference.write(folder)
    return folder


def base_and_adapters(folder, methods):
    """Returns the place of a tiny base, by the name `base`, and those of adapters of these methods by theirs."""
    tiny_model_directory(folder / "base")
    adapters = {
        name: adapter_checkpoint(folder / name, folder / "base", method, seed)
        for seed, (name, method) in enumerate(methods.items())
    }
    return {"base": folder / "base", **adapters}


def registered(uri, name, checkpoint, folder, *, tags=None):
    """Makes a version of a checkpoint, as a registration does, but for the proof. Returns its number.

    Args:
        tags: in place of the one that says the package's digest.
    """
    client = open_store(uri)
    with contextlib.suppress(Exception):
        client.create_registered_model(name)
    place = folder / "artifacts" / PACKAGE
    package(checkpoint, place)
    tags = {PACKAGE_DIGEST_TAG: package_digest(place)} if tags is None else tags
    return str(client.create_model_version(name, str(folder), tags=tags).version)
