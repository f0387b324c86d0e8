"""A real small disk that is filled, freed, and mounted read-only: writers wait for room, and nothing is lost."""

import re

import pytest

from tests.support.small_disk import on_small_disk, on_thin_disk

CHILDREN = "tests.support.full_disk_children"


@pytest.mark.parametrize("case", ["journal", "small_files", "checkpoint"])
def test_a_writer_waits_on_a_full_disk_says_so_and_goes_on(tmp_path, case):
    said = on_small_disk(tmp_path, CHILDREN, case).splitlines()
    full = [line for line in said if "the disk is full. Nothing is lost: trials wait" in line]
    back = [line for line in said if "there is room again after" in line]
    assert len(full) == len(back) == (2 if case == "small_files" else 1)
    assert all(line.startswith(str(tmp_path / "disk")) for line in (*full, *back))


def test_a_checkpoint_is_written_anew_where_only_the_sync_says_that_the_disk_is_full(tmp_path):
    said = on_thin_disk(tmp_path, CHILDREN, "checkpoint_of_a_disk_that_notices_late")
    assert said.count("the disk is full. Nothing is lost: trials wait") == said.count("there is room again after") == 1


@pytest.mark.parametrize("case", ["a_folder_that_is_made_once", "read_only"])
def test_what_waiting_does_not_mend_is_a_sentence_with_the_way_out(tmp_path, case):
    said = on_small_disk(tmp_path, CHILDREN, case)
    assert re.search(r"/disk/\S+: its disk is (full|read-only)", said)
    assert "Traceback" not in said
