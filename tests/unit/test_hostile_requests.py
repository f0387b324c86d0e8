"""Attacks on the requests of a live search: whatever lies in their folder is refused, and mail and heartbeat go on."""

import json
import os
import time
from types import SimpleNamespace

import pytest

from components.cluster.driver.trial_control import TrialController
from components.errors import InputError
from components.experiment.load_experiment import load_experiment
from components.records import driver_presence as driver
from components.records.commands import CloneTrial, CommandReply, ExtendTrial, StopTrial, command_of
from components.records.driver_presence import DriverHeartbeat, DriverInbox
from components.records.histories import TrialHistories
from components.records.mailbox import MAX_BYTES, Mailbox
from components.storage.open_folder import folder_at
from tests.support.inbox import Inbox
from tests.support.servers import until
from tests.support.three_trials import RECORDS
from workflows import control


@pytest.fixture
def box(tmp_path):
    box = Mailbox(folder_at(tmp_path))
    box.ask(StopTrial(trial="1"))
    return box


def in_requests(box, name, content):
    (box.folder.path / name).write_bytes(content)


def whole(**changes):
    return json.dumps(
        {"request_id": "x", "by": "me", "time": 1.0, "command": {"kind": "stop", "trial": "1"}} | changes
    ).encode()


HOSTILE = {
    "not-utf-8": b"\xff\xfe{",
    "nul": b"\0",
    "a-nul-inside": whole(by="a\0b"),
    "nothing": b"",
    "no-object": b"[]",
    "deep": b"[" * 50_000,
    "half-an-emoji": b'{"by": "\\ud83d"}',
    "large": whole(by="x" * MAX_BYTES),
    "much": b" " * 10 * MAX_BYTES,
    "long-name": whole(by="x" * 300),
    "no-trial": whole(command={"kind": "stop", "trial": ""}),
    "long-trial": whole(command={"kind": "stop", "trial": "1" * 5000}),
    "infinite": b'{"request_id": "x", "by": "me", "time": Infinity, "command": {"kind": "stop", "trial": "1"}}',
    "by-1e308": whole(command={"kind": "extend", "trial": "1", "share": 1e308}),
    "by-1e309": whole(command={"kind": "extend", "trial": "1", "share": 1.0}).replace(b"1.0}", b"1e309}"),
    "by-nan": whole(command={"kind": "extend", "trial": "1", "share": float("nan")}),
    "by-less": whole(command={"kind": "extend", "trial": "1", "share": -0.5}),
    "too-many": whole(command={"kind": "extend", "trial": "1", "target_tokens": 10**300}),
    "digits": whole(command={"kind": "extend", "trial": "1", "target_tokens": 0}).replace(
        b": 0}", b": " + b"9" * 9000 + b"}"
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_is_no_request_is_refused_and_holds_up_no_other(box, name):
    in_requests(box, f"{name}.json", HOSTILE[name])
    assert [request.command for request in box.waiting()] == [StopTrial(trial="1")]
    reply = box.reply_to(name)
    assert not reply.accepted
    assert reply.message.startswith("no request of this version of Turnwise: ")
    assert len(reply.message) < 500


def test_a_folder_a_link_and_a_pipe_among_the_requests_are_refused_and_not_opened(box, tmp_path):
    folder = box.folder.path
    (folder / "folder.json").mkdir()
    (tmp_path / "secret").write_bytes(whole())
    (folder / "link.json").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "pipe.json")
    assert len(box.waiting()) == 1
    for name, kind in (("folder", "folder"), ("link", "link"), ("pipe", "named pipe")):
        assert box.reply_to(name).message.endswith(f"is a {kind}, and must be a regular file")


def test_a_requests_id_is_its_files_name_and_never_what_it_says(box, tmp_path):
    in_requests(box, "0-first.json", whole(request_id="../../elsewhere"))
    first, _ = box.waiting()
    assert first.request_id == "0-first"
    box.reply(first.request_id, CommandReply(accepted=True, message="yes"))
    assert box.reply_to("0-first").accepted
    assert sorted(path.name for path in tmp_path.iterdir()) == ["requests"]


@pytest.mark.parametrize("name", [b"\xff.json", b"a b.json", "é".encode() + b".json", b"x" * 249 + b".json", b"..json"])
def test_a_file_whose_name_is_no_id_stays_unread(box, name):
    (box.folder.path / os.fsdecode(name)).touch()
    assert len(box.waiting()) == len(box.waiting()) == 1


def test_a_reply_that_is_none_is_said_to_the_one_who_waits_for_it(box):
    in_requests(box, "x.reply.json", b"\xff")
    with pytest.raises(InputError, match=r"x\.reply\.json: no reply of this version"):
        box.reply_to("x")


def test_heartbeats_go_on_whatever_lies_among_the_requests(box, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(driver, "BEAT_SECONDS", 0.01)
    for name, content in HOSTILE.items():
        in_requests(box, f"{name}.json", content)
    os.mkfifo(box.folder.path / "pipe.json")
    with DriverInbox(folder_at(tmp_path)) as inbox:
        taken = []
        until(lambda: taken.extend(inbox.poll()) or taken, seconds=60)
        until(lambda: all(box.reply_to(name) for name in (*HOSTILE, "pipe")), seconds=60)
        box.folder.path.rename(tmp_path / "aside")
        box.folder.path.write_text("no folder any more")
        inbox.reply(taken[0], CommandReply(accepted=True, message="never written"))
        then = time.time()
        until(lambda: DriverHeartbeat.read(folder_at(tmp_path)).last_beat > then, seconds=60)
        box.folder.path.unlink()
        later = box.ask(StopTrial(trial="2"))
        until(lambda: taken.extend(inbox.poll()) or len(taken) > 1, seconds=60)
        assert taken[1].request_id == later.request_id
        until(lambda: box.reply_to(taken[0].request_id), seconds=60)  # the reply has been tried again


# The controller


@pytest.fixture
def controller(toy_search):
    def make(inbox):
        context = SimpleNamespace(experiment=load_experiment("toy.yaml"), budget=1000)
        return TrialController(context, None, TrialHistories([RECORDS[0]]), None, inbox)

    return make


@pytest.mark.parametrize(
    "command",
    [
        StopTrial(trial="²"),
        StopTrial(trial="٣"),
        StopTrial(trial="9" * 200),
        StopTrial(trial="-1"),
        ExtendTrial(trial="1", share=1000.0),
        ExtendTrial(trial="1", target_tokens=2**53),
        ExtendTrial.model_construct(trial="1", share=1e308, target_tokens=None),
        CloneTrial(trial="1", changes={"optimizer": {"a": [1]}, "method.rank": "x" * 999, "\n": None}),
        CloneTrial(trial="1", changes={}),
    ],
)
def test_what_cannot_be_carried_out_is_refused_and_ends_no_search(controller, command):
    inbox = Inbox(command)
    controller(inbox).process_requests()
    (reply,) = inbox.replies
    assert not reply.accepted
    assert reply.message
    assert isinstance(command, StopTrial) == reply.message.startswith("there is no trial")


@pytest.mark.parametrize("by", ["1e308", "inf", "nan", "-1", "²", "0", "1e309%", "9" * 400])
def test_a_share_that_cannot_be_meant_is_refused_by_its_rule(by, capsys):
    with pytest.raises(SystemExit) as ended:
        control.main(["toy.yaml", "extend", "1", f"--by={by}"])
    assert ended.value.code == 2
    assert f"--by {by}: write it as a share of the present budget" in capsys.readouterr().err


@pytest.mark.parametrize(
    "fields",
    [{"share": float("nan")}, {"share": 1e308}, {"target_tokens": 10**400}, {"trial": ""}, {"trial": "1" * 999}],
)
def test_a_command_of_python_is_refused_by_the_same_rules(fields):
    with pytest.raises(InputError, match=r"^extend: \w+: "):
        command_of(ExtendTrial, **{"trial": "1", **fields})
