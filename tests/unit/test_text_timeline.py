"""Nodes and trials over time: what is drawn, and where a trial is taken to have been."""

from components.experiment.spec import LoraMethod
from components.records.events import TrialEnded
from components.records.slot_timeline import SlotInterval, slot_intervals
from components.reports.text_timeline import TimelineBar, TimelineRow, timeline_text
from tests.support.three_trials import progressed, started


def test_rows_share_one_axis_and_what_is_short_is_still_seen():
    bars = (
        TimelineBar(began=110.0, ended=130.0, mark="#"),
        TimelineBar(began=140.0, ended=140.1, mark="#"),
    )
    rows = [
        TimelineRow(label="head", bars=(TimelineBar(began=100.0, ended=150.0, mark="-"),)),
        TimelineRow(label="  trial 1", bars=bars),
    ]
    assert timeline_text(rows, width=11) == (
        "           0 s    50 s\n"
        "head       ----------\n"
        "  trial 1    ####  #"
    )  # fmt: skip


def test_a_trial_is_where_its_reports_came_from_and_ends_where_the_last_one_did():
    records = [
        started(7, LoraMethod()).model_copy(update={"time": 10.0}),
        progressed(7, 100, 2.0).model_copy(update={"time": 20.0, "slot": "a"}),
        progressed(7, 200, 1.9).model_copy(update={"time": 50.0, "slot": "b"}),
        TrialEnded(trial_id="t7", state="stopped", time=51.0),
    ]
    assert list(slot_intervals(records)) == [
        SlotInterval(number=7, slot="a", began=10.0, ended=20.0),
        SlotInterval(number=7, slot="b", began=20.0, ended=50.0),
        SlotInterval(number=7, slot="b", began=50.0, ended=51.0),
    ]
