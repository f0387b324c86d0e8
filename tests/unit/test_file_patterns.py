"""Patterns of data files: what they name, however the folders are linked."""

import glob
from pathlib import Path

import pytest

from components.conversations.readers import file_patterns
from components.conversations.readers.data_problems import ConversationError
from components.conversations.readers.sources import files_of


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name in ("a.jsonl", "b/a.jsonl", "b/c/a.jsonl", "b/c/b.json", "b/.hidden/a.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "pattern",
    [
        "*.jsonl",
        "**/*.jsonl",
        "b/**/*.jsonl",
        "**/c/*",
        "**/c/**/*.json",
        "b/**",
        "*/**/a.*",
        "**",
        "x/**",
        "./**/*.json",
    ],
)
def test_a_pattern_names_what_it_names_for_the_shell(tree, pattern):
    for prefix in ("", f"{tree}/"):
        theirs = {path for path in glob.glob(prefix + pattern, recursive=True) if Path(path).is_file()}  # noqa: PTH207
        assert set(file_patterns.files_matching(prefix + pattern)) == theirs
    assert theirs or pattern == "x/**"


def test_links_in_circles_end(tree):
    for name in ("b/up", "b/c/up", "b/c/top", "b/c/too"):
        (tree / name).symlink_to(tree)
    assert files_of("**/*.jsonl") == ["a.jsonl", "b/a.jsonl", "b/c/a.jsonl"]


def test_a_pattern_of_too_many_files_is_refused_in_words(tree, monkeypatch):
    monkeypatch.setattr(file_patterns, "MAX_FILES", 2)
    assert len(files_of("b/c/*")) == 2
    for pattern, what in (("**/*.jsonl", "folders"), ("b/**", "files"), ("*/*/*", "files")):
        (tree / "b/c/c.json").write_text("{}")
        with pytest.raises(ConversationError) as caught:
            files_of(pattern)
        assert str(caught.value) == f"{pattern}: names more than 2 {what}; name a folder further down"


def test_a_name_that_no_file_can_have_is_refused_in_words():
    with pytest.raises(ConversationError, match="a\0b: no"):
        files_of("a\0b")
