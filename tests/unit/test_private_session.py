"""What a Ray cluster of one machine keeps from the machine's other users, without a cluster."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from components.cluster.private_session import (
    GLOO_INTERFACE,
    LONGEST_PATH,
    gloo_on_loopback,
    keep_token_private,
    session_folder,
)
from components.errors import InputError


@pytest.fixture(autouse=True)
def own_places(tmp_path, monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "TMPDIR", GLOO_INTERFACE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "ray"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_the_folder_of_sessions_is_its_users_alone_also_one_that_was_open(tmp_path):
    folder = session_folder()
    assert (folder.parent, mode(folder)) == (tmp_path / "ray", 0o700)
    folder.chmod(0o777)
    assert mode(session_folder()) == 0o700


def test_a_folder_of_sessions_that_somebody_has_laid_out_is_refused(tmp_path, monkeypatch):
    user = os.getuid()
    elsewhere, own = tmp_path / "elsewhere", tmp_path / "ray" / f"tw-{user}"
    elsewhere.mkdir()
    own.parent.mkdir()
    own.symlink_to(elsewhere)
    with pytest.raises(InputError, match=r"is a link, or another user's.* set RAY_TMPDIR to a folder of your own"):
        session_folder()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    own.with_name(f"tw-{user + 1}").mkdir()  # as the first user may have made it for the second one
    with pytest.raises(InputError, match="another user's"):
        session_folder()


def test_the_folder_of_sessions_is_short_enough_for_sockets(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("x" * 40)))
    folder = session_folder()
    assert folder == Path(f"/tmp/tw-{os.getuid()}")
    assert len(str(folder)) <= LONGEST_PATH


def test_the_clusters_token_is_read_by_its_user_alone(tmp_path):
    file = tmp_path / "home" / ".ray" / "auth_token"
    keep_token_private()
    token = file.read_text()
    assert (len(token), mode(file), mode(file.parent)) == (64, 0o600, 0o700)
    file.chmod(0o644)  # as Ray writes it
    keep_token_private()
    assert (file.read_text(), mode(file)) == (token, 0o600)
    assert [path.name for path in file.parent.iterdir()] == ["auth_token"]


def test_programs_that_begin_at_once_have_one_token(tmp_path):
    together, tokens = threading.Barrier(8), []

    def begin():
        together.wait()
        keep_token_private()
        tokens.append((tmp_path / "home" / ".ray" / "auth_token").read_text())

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tokens) == 8
    assert len(set(tokens)) == 1


def test_a_token_from_elsewhere_stays_as_it_is(tmp_path, monkeypatch):
    file = tmp_path / "home" / ".ray" / "auth_token"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "given")
    keep_token_private()
    assert not file.exists()
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    file.parent.mkdir()
    mounted = tmp_path / "mounted"
    mounted.write_text("given")
    mounted.chmod(0o640)
    file.symlink_to(mounted)
    keep_token_private()
    assert (file.read_text(), mode(mounted)) == ("given", 0o640)


def test_gloo_listens_on_loopback_unless_somebody_has_said_otherwise(monkeypatch):
    with gloo_on_loopback():
        assert os.environ[GLOO_INTERFACE] == "lo"
    assert GLOO_INTERFACE not in os.environ
    monkeypatch.setenv(GLOO_INTERFACE, "eth7")
    with gloo_on_loopback():
        assert os.environ[GLOO_INTERFACE] == "eth7"
    assert os.environ[GLOO_INTERFACE] == "eth7"


LISTENS = """
import psutil, sys, torch.distributed as dist
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
print({each.laddr.ip for each in psutil.Process().net_connections("inet") if each.status == psutil.CONN_LISTEN})
"""


def test_gloo_listens_on_no_address_that_other_machines_reach(tmp_path):
    with gloo_on_loopback():
        command = [sys.executable, "-c", LISTENS, str(tmp_path / "rendezvous")]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert said.stdout.strip() == "{'127.0.0.1'}"
