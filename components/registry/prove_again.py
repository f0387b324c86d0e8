"""Proves a registered version once more: as a registration does where the data of its search are, else as far as it goes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from components.data.prepare import PreparedDataset
from components.errors import InputError, VerificationError
from components.experiment.spec import ExperimentSpec
from components.models.load_trained import read_spec
from components.records.manifest import SearchManifest
from components.registry import answers_alone
from components.registry.alias_moves import BEFORE_TAG
from components.registry.gate import check_report
from components.registry.library_path import library_path
from components.registry.manage_versions import VersionShelf
from components.registry.model_package import package_in
from components.registry.package_digest import PACKAGE_DIGEST_TAG, check_package, package_digest
from components.registry.proven import PROVEN_TAG, proven_in_full, proven_in_part
from components.registry.verification_launcher import explain_exit, verify_in_subprocess
from components.registry.verification_messages import VerificationSettings
from components.registry.verification_worker import text_of_reply, text_of_thought
from components.registry.version_record import VersionRecord
from components.registry.versions import files_of
from components.storage.open_folder import folder_at
from components.tracking.mlflow_access import MLFLOW_ERRORS, is_final, reason_of
from components.tracking.mlflow_runs import MAX_ROWS_TAG, PARENT_TAG

ANSWER_SECONDS = 1800.0


class _RefutedError(VerificationError):
    """The version is not what it should be."""


class _NotFoundError(Exception):
    """What a whole proof needs and is not here, as a sentence."""


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """How a version was scored in training, and on what."""

    settings: VerificationSettings
    eval_loss: float


def prove(shelf: VersionShelf, named: str) -> str:
    """Proves NAME/7 or NAME@ALIAS in fresh processes, and tags it with what was seen. Returns that.

    Raises VerificationError if it fails. If that is about the version, and not about this machine, it is no longer proven.
    """
    record = shelf.get(named)
    with shelf.answering(named):
        try:
            with files_of(record.uri, record.source, shelf.uri) as folder:
                digest, seen = _digest(record, folder), _prove(shelf, record, folder)
        except _RefutedError as error:
            shelf.client.delete_model_version_tag(record.name, record.version, PROVEN_TAG)
            raise VerificationError(f"{error}{_way_out(record)}") from None
        for tag, value in {PACKAGE_DIGEST_TAG: digest, PROVEN_TAG: seen}.items():
            shelf.client.set_model_version_tag(record.name, record.version, tag, value)
    return seen


def _way_out(record: VersionRecord) -> str:
    alias = next((alias for alias in record.aliases if BEFORE_TAG.format(alias) in record.tags), None)
    if alias is None:
        return ""
    return f'; it holds the alias {alias}: registry.py rollback {record.name} --alias {alias} --reason "..."'


@contextlib.contextmanager
def _about_the_version() -> Iterator[None]:
    """Inside, an error says that the version is not what it should be."""
    try:
        yield
    except (InputError, VerificationError) as error:
        raise _RefutedError(str(error)) from None


def _digest(record: VersionRecord, folder: Path) -> str:
    """Of the package, which must be the registered one. A version of before has no digest yet: it is what is proven now."""
    known = record.tags.get(PACKAGE_DIGEST_TAG)
    if known is None:
        return package_digest(package_in(folder))
    with _about_the_version():
        check_package(package_in(folder), known, record.uri)
    return known


def _prove(shelf: VersionShelf, record: VersionRecord, folder: Path) -> str:
    try:
        trained = _trained(shelf, record, folder)
    except _NotFoundError as missing:
        _check_answer(record, folder)
        return proven_in_part(str(missing))
    report = verify_in_subprocess(record.uri, None, shelf.uri, settings=trained.settings)
    with _about_the_version():
        check_report(report, trained.eval_loss, record.uri)
    return proven_in_full(report, trained.eval_loss)


def _trained(shelf: VersionShelf, record: VersionRecord, folder: Path) -> _Trained:
    """Raises _NotFoundError if the search's records or its prepared data are not to be found from here."""
    if record.eval_loss is None or record.run_id is None:
        raise _NotFoundError("the version does not say what it scored in training")
    try:
        run = shelf.client.get_run(record.run_id)
        experiment = _experiment(shelf, run.data.tags[PARENT_TAG])
        manifest = SearchManifest.read(experiment.folder / record.tags["turnwise.search_id"])
        prepared = PreparedDataset.open(folder_at(manifest.base_of(record.tags["turnwise.branch"]).prepared)).verify()
        if prepared.digest != record.tags["turnwise.data_digest"]:
            raise InputError(f"{prepared.directory} holds other data than it was trained on")
        rows = int(run.data.tags.get(MAX_ROWS_TAG, read_spec(package_in(folder)).batch.rows_per_micro_batch))
    except MLFLOW_ERRORS as error:
        if not isinstance(error, OSError) and not is_final(error):
            raise
        raise _NotFoundError(reason_of(error)) from None
    except KeyError as error:
        raise _NotFoundError(f"nothing says its {error.args[0]}") from None
    except ValueError as error:
        raise _NotFoundError(str(error)) from None
    settings = VerificationSettings(
        prepared=prepared.directory,
        max_tokens=experiment.data.max_tokens,
        rows_per_batch=rows,
        probes=(),
        timeout_seconds=60 * experiment.registry.proof_minutes,
    )
    return _Trained(settings=settings, eval_loss=record.eval_loss)


def _experiment(shelf: VersionShelf, search_run: str) -> ExperimentSpec:
    """As the search's run has it. A relative `storage.path` is that of the directory in which the search was started."""
    with tempfile.TemporaryDirectory(prefix="turnwise-experiment-") as scratch:
        file = Path(shelf.client.download_artifacts(search_run, "experiment.json", scratch))
        return ExperimentSpec.model_validate_json(file.read_text(encoding="utf-8"))


def _check_answer(record: VersionRecord, folder: Path) -> None:
    """Raises VerificationError unless a version loads through MLflow in a fresh process, and says something."""
    with tempfile.TemporaryDirectory(prefix="turnwise-answer-") as place:
        try:
            done = subprocess.run(
                [sys.executable, "-P", answers_alone.__file__, str(folder.absolute())],
                cwd=place,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(library_path())},
                capture_output=True,
                text=True,
                check=False,
                timeout=ANSWER_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise VerificationError(f"{record.uri} did not answer within {ANSWER_SECONDS:.0f} seconds") from None
    if done.returncode != 0:
        raise VerificationError(f"{record.uri} {explain_exit(done.returncode, done.stderr)}")
    reply = json.loads(done.stdout.splitlines()[-1])
    if not (text_of_reply(reply["choices"][0]["message"]) or text_of_thought(reply)).strip():
        raise _RefutedError(f"{record.uri} loads, but answers nothing")
