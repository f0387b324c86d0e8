"""The models that a server has in memory, by the names that clients use, and how they follow their aliases."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from peft import PeftModel
from transformers import PreTrainedModel

from components.errors import InputError, message_of
from components.experiment.spec import ChatFormatSpec, ModelSpec
from components.models.base.load_base import load_base_model, resolve_model
from components.models.base_in_memory import BaseInMemory
from components.models.chatglm.adapter_conversion import CONFIG_FILE
from components.models.load_trained import ADAPTER, LoadedModel, is_trained, load_base, load_trained
from components.registry.load_by_name import is_registered, trained_directory
from components.registry.registered_version import RegisteredVersion, registered_version
from components.serving.generation_thread import GenerationThread
from components.serving.limits import Limits
from components.storage.foreign_files import read_object
from components.storage.uri import is_remote
from components.tracking.mlflow_access import check_tracking, tracking_uri

RETRY_SECONDS = 60.0  # before a version that could not be loaded is tried again


@dataclass(frozen=True, kw_only=True)
class _Weights:
    """Which weights are in memory, and how. `only`: the one name that may use them, of a full fine-tune."""

    directory: str
    model: ModelSpec | None = None
    quantize: str | None = None
    only: str | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class ServedModel:
    """A model that answers. `prompts` is held while a prompt is rendered: chat formats are used by one thread at a time.

    `files` is the folder of what was downloaded for it. `version` is the registered one, None for others, and
    `digest_checked` says that its files are those that were registered.
    """

    id: str
    source: str
    loaded: LoadedModel
    thread: GenerationThread
    files: tempfile.TemporaryDirectory[str]
    version: str | None = None
    digest_checked: bool = False
    since: int = field(default_factory=lambda: int(time.time()))
    prompts: threading.Lock = field(default_factory=threading.Lock)

    def forget_files(self) -> None:
        """Deletes what was downloaded for it. Weights that are mapped stay readable to who has them."""
        self.files.cleanup()


class ServedModels:
    """Adapters of one base share it in memory. A model is loaded beside the one it replaces, which first ends its replies.

    Args:
        sources: name for clients -> models:/NAME@ALIAS, models:/NAME/VERSION, a directory, a hub id.
        chat_format: of base models; trained ones have their own.
        tracking: URI of the registry; by default MLFLOW_TRACKING_URI, else mlflow.db here.
    """

    def __init__(
        self,
        sources: Mapping[str, str],
        limits: Limits,
        *,
        chat_format: ChatFormatSpec | str = "auto",
        tracking: str | None = None,
    ) -> None:
        self.sources, self.limits = dict(sources), limits
        self.chat_format, self.tracking = chat_format, tracking
        self.problems: dict[str, str] = {}  # name -> why its newest version does not serve
        self._served: dict[str, ServedModel] = {}
        self._threads: dict[_Weights, GenerationThread] = {}
        self._closed = False
        self._changing = threading.Lock()  # which bases there are
        self._failed: dict[str, tuple[str, float]] = {}  # name -> version that could not be loaded, and when

    def open(self) -> None:
        """Loads all of them. Raises InputError with every one that cannot be."""
        problems = []
        if any(is_registered(source) for source in self.sources.values()):
            check_tracking(self.registry)
        loaded: dict[str, ServedModel] = {}
        for name in sorted(self.sources, key=self._is_base):  # the last find the bases of adapters in memory
            try:
                loaded[name] = self._load(name, self._version_of(name))
            except (ValueError, OSError) as error:
                problems.append(message_of(error))
        self._served = {name: loaded[name] for name in self.sources if name in loaded}
        if problems:
            self.close()
            raise InputError("\n".join(problems))

    @property
    def registry(self) -> str:
        return tracking_uri(given=self.tracking)

    @property
    def models(self) -> list[ServedModel]:
        return list(self._served.values())

    def get(self, name: str) -> ServedModel | None:
        return self._served.get(name)

    def follow(self) -> None:
        """Looks once where the aliases point, and loads what is new. What fails leaves the old model at work."""
        for name, source in self.sources.items():
            if "@" not in source or not is_registered(source):
                continue
            try:
                version = self._version_of(name)
                if version is None or version.number == self._served[name].version:
                    self.problems.pop(name, None)
                elif not self._has_just_failed(name, version.number):
                    self._replace(name, version)
            except (ValueError, OSError) as error:
                self.problems[name] = message_of(error)

    def close(self) -> None:
        """Ends all replies, and what is being loaded once it is there."""
        self._closed = True
        for thread in list(self._threads.values()):
            thread.close()
        for served in self.models:
            served.forget_files()
        self._served = {}

    def _version_of(self, name: str) -> RegisteredVersion | None:
        source = self.sources[name]
        return registered_version(source, self.registry) if is_registered(source) else None

    def _is_base(self, name: str) -> bool:
        """Whether it is a base model, as far as can be seen without a download."""
        source = self.sources[name]
        return not (is_registered(source) or is_remote(source) or is_trained(Path(source).expanduser()))

    def _has_just_failed(self, name: str, number: str) -> bool:
        failed, at = self._failed.get(name, ("", 0.0))
        return failed == number and time.monotonic() < at + RETRY_SECONDS

    def _replace(self, name: str, version: RegisteredVersion) -> None:
        old = self._served[name]
        try:
            self._served[name] = self._load(name, version)
        except Exception as error:
            self._failed[name] = version.number, time.monotonic()
            goes_on = f"version {old.version} goes on"
            raise InputError(f"version {version.number} does not serve: {message_of(error)}; {goes_on}") from error
        self.problems.pop(name, None)
        threading.Thread(target=self._retire, args=(old,), name="retire", daemon=True).start()

    def _retire(self, old: ServedModel) -> None:
        old.thread.remove_model(old.loaded)
        old.forget_files()
        with self._changing:
            self._drop_unused()

    def _load(self, name: str, version: RegisteredVersion | None) -> ServedModel:
        source = self.sources[name]
        files = tempfile.TemporaryDirectory(prefix="turnwise-served-", ignore_cleanup_errors=True)
        try:
            directory = (
                version.download(Path(files.name)) if version else trained_directory(source, tracking=self.tracking)
            )
            with self._changing:
                loaded, thread = self._load_files(name, directory)
        except BaseException:
            files.cleanup()
            raise
        return ServedModel(
            id=name,
            source=source,
            loaded=loaded,
            thread=thread,
            files=files,
            version=version.number if version else None,
            digest_checked=version is not None and version.digest is not None,
        )

    def _load_files(self, name: str, directory: Path | None) -> tuple[LoadedModel, GenerationThread]:
        try:
            loaded, thread = self._load_base(name) if directory is None else self._load_trained(name, directory)
            if self._closed:
                raise InputError(f"{name}: the server ends")
            thread.add_model(loaded)
        except BaseException:
            self._drop_unused()
            raise
        return loaded, thread

    def _load_base(self, name: str) -> tuple[LoadedModel, GenerationThread]:
        """Loads a base model, unless adapters have it in memory."""
        model = ModelSpec(path=self.sources[name])
        directory = str(resolve_model(model))
        for known, thread in self._threads.items():
            if known.directory == directory and known.quantize is None and known.only is None:
                with thread.pausing():
                    return load_base(model, self.chat_format, in_memory=thread.base.base), thread
        loaded = load_base(model, self.chat_format)
        return loaded, self._thread(_Weights(directory=directory, model=model), loaded.model)

    def _load_trained(self, name: str, directory: Path) -> tuple[LoadedModel, GenerationThread]:
        _check_changes_layers_only(directory)
        with contextlib.ExitStack() as stack:
            shared: list[GenerationThread] = []

            def base_of_adapter(model: ModelSpec, *, quantize: str | None = None, **options: object) -> PreTrainedModel:
                shared.append(stack.enter_context(self._base(model, quantize, **options)))
                return shared[0].base.base

            loaded = load_trained(directory, load_base_of_adapter=base_of_adapter)
            if shared:
                shared[0].base.take_out(cast(PeftModel, loaded.model))
                return loaded, shared[0]
        return loaded, self._thread(_Weights(directory=str(directory), only=name), loaded.model)

    def _thread(self, key: _Weights, model: PreTrainedModel) -> GenerationThread:
        thread = self._threads[key] = GenerationThread(BaseInMemory(model), self.limits)
        return thread

    def _drop_unused(self) -> None:
        """Ends the threads of bases that no model needs."""
        for key, thread in list(self._threads.items()):
            if thread.models == 0:
                thread.close()
                del self._threads[key]

    @contextlib.contextmanager
    def _base(self, model: ModelSpec, quantize: str | None, **options: object) -> Iterator[GenerationThread]:
        """Inside, the base of an adapter is not at work; an adapter that could not be put on it is taken off again."""
        key = _Weights(directory=model.path, model=model, quantize=quantize)
        thread = self._threads.get(key)
        if thread is None:
            base = load_base_model(model, quantize=quantize, **options).eval()  # type: ignore[arg-type]
            thread = self._thread(key, base)
        with thread.pausing():
            try:
                yield thread
            except BaseException:
                thread.base.restore()
                raise


def _check_changes_layers_only(directory: Path) -> None:
    """Raises InputError for an adapter that would change the base itself, and so what others say."""
    config_file = directory / ADAPTER / CONFIG_FILE
    if not config_file.is_file():
        return
    config = read_object(config_file)
    if config.get("modules_to_save") or config.get("bias", "none") != "none":
        raise InputError(
            f"{config_file}: it has modules_to_save or bias, which change the base that other adapters use; export it merged,"
            " and serve that"
        )
