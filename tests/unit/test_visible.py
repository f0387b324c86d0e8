"""What came from outside and could act on a terminal, or hide from a reader, is seen as text wherever it is printed."""

import ast
import io
import json
import sys
import unicodedata
from pathlib import Path

import pytest
from rich.live import Live
from rich.table import Table
from rich.text import Text

from components.conversations.preview.mask_preview import PreviewRecord, preview_html, preview_texts
from components.notebook import html_of, text_of
from components.visible import VisibleConsole, page_environment, visible, visible_json
from workflows import cli, control, preview
from workflows.chat import send

ROOT = Path(__file__).parents[2]
CLEAR = "\x1b[2J"
HOSTILE = f"a{CLEAR}b\x9b31mc\u202ed\u200be\rf\x07g"
SHOWN = r"a\x1b[2Jb\x9b31mc\u202ed\u200be\x0df\x07g"


def acts(text):
    """Characters that a terminal would obey or not show, but for those that rich writes itself."""
    return [character for character in text if unicodedata.category(character) in ("Cc", "Cf") and character != "\n"]


def test_what_acts_or_hides_is_an_escape_and_the_rest_stays():
    assert visible(HOSTILE) == SHOWN
    assert visible("two\nlines\tand café, 中文, \\x1b as text") == "two\nlines\tand café, 中文, \\x1b as text"
    assert visible("half \ud83d, tag \U000e0041") == r"half \ud83d, tag \U000e0041"


def test_every_control_mark_of_direction_and_half_of_a_pair_is_one_of_them():
    """By Unicode's own classes; letters of the class of formats that are seen, such as signs before Arabic numbers, stay."""
    seen = {0x70F, *range(0x600, 0x606), 0x6DD, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD, *range(0x13430, 0x13440)}
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in "\n\t":
            assert (visible(character) == character) == (code in seen), hex(code)


def test_joiners_stay_where_writing_needs_them():
    persian, coder = "نمی\u200cشود", "👩\u200d💻"
    assert visible(f"{persian} {coder}") == f"{persian} {coder}"
    assert visible("pass\u200cword \u200d") == r"pass\u200cword \u200d"


def test_json_means_the_same():
    value = {"answer": HOSTILE + "\U000e0041"}
    line = visible_json(json.dumps(value, ensure_ascii=False))
    assert json.loads(line) == value
    assert acts(line) == []


@pytest.mark.parametrize("terminal", [False, True])
def test_a_console_shows_strings_texts_and_tables_so(terminal):
    file = io.StringIO()
    console = VisibleConsole(file=file, width=200, color_system=None, force_terminal=terminal)
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    table.add_row(Text(f"only {CLEAR}\u202e"))
    console.print(HOSTILE, "[bold]kept[/bold] :smile:", soft_wrap=True)
    console.print(Text(f"only {CLEAR}"))
    console.print(table)
    said = file.getvalue()
    assert said.count(SHOWN) == 4
    assert said.count(r"only \x1b[2J") == 2
    assert "[bold]kept[/bold] :smile:" in said
    assert not terminal or CLEAR not in said
    if not terminal:
        assert acts(said) == []


def test_a_live_table_still_moves_the_cursor_and_its_names_do_not():
    file = io.StringIO()
    console = VisibleConsole(file=file, width=100, force_terminal=True)
    with Live(Text("x"), console=console, auto_refresh=False, transient=True) as live:
        live.update(Text(f"a trial {CLEAR}"), refresh=True)
    assert "\x1b[2K" in file.getvalue()
    assert CLEAR not in file.getvalue()


def test_pages_escape_both_ways():
    hostile = f"<script>x</script>{CLEAR}\u202e"
    page = page_environment().from_string("{{ said }} {{ said | replace('\n', '-') }}").render(said=hostile)
    shown = r"&lt;script&gt;x&lt;/script&gt;\x1b[2J\u202e"
    assert page == f"{shown} {shown}"
    assert r"&lt;b&gt;\x1b[2J" in html_of(f"<b>{CLEAR}")
    assert acts(text_of(HOSTILE)) == []


def test_what_programs_print_goes_through_one_place(capsys):
    with pytest.raises(SystemExit):
        cli.fail(f"{HOSTILE}: no such model", cli.Exit.BAD_INPUT)
    cli.show_json({"reason": HOSTILE})
    cli.show(HOSTILE)
    cli.make_console().print(HOSTILE)
    said = capsys.readouterr()
    assert acts(said.out + said.err) == []
    assert SHOWN in said.err
    assert said.out.count(SHOWN) == 2


def test_an_answer_in_a_chat_cannot_act(capsys):
    class Session:
        def send(self, text):
            return iter(["one ", CLEAR, "\x1b]0;title\x07", "two"])

    send(Session(), "hello")
    assert capsys.readouterr().out == "one \\x1b[2J\\x1b]0;title\\x07two\n"


def test_a_preview_shows_what_a_record_hides(capsys, tmp_path, tiny_model):
    said = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "ba"}]
    (tmp_path / f"a{CLEAR}.jsonl").write_text(json.dumps({"messages": said, "tags": HOSTILE}) + "\n")
    arguments = ["--model", str(tiny_model), "--data", str(tmp_path / f"a{CLEAR}.jsonl"), "--unknown-keys", "ignore"]
    preview.main([*arguments, "--html", str(tmp_path / "page.html")])
    said = capsys.readouterr().out + (tmp_path / "page.html").read_text()
    assert acts(said) == []
    assert said.count(r"a\x1b[2J.jsonl") >= 2


@pytest.mark.parametrize("colors", [False, True])
def test_every_token_of_a_preview_is_seen(colors):
    codes = [ord(character) for character in HOSTILE]
    record = PreviewRecord(source=HOSTILE, token_ids=codes, target_weights=[1.0] * len(codes))

    def decode(token_ids):
        return "".join(map(chr, token_ids))

    heading, tokens = preview_texts([record], decode, colors=colors)
    assert heading.plain.startswith(SHOWN)
    assert SHOWN in tokens.plain
    page = preview_html([record], decode, HOSTILE)
    assert acts(page) == []
    assert page.count(r"\x1b") == 4  # the title and its heading, the source, the token


def test_a_refused_command_is_shown_so(capsys):
    with pytest.raises(SystemExit):
        control.main([f"no{CLEAR}.yaml", "stop", "3"])
    assert r"no\x1b[2J.yaml" in capsys.readouterr().err


def test_nothing_is_printed_by_another_way():
    """`print` is for cli.py, and a console of rich's own for no file."""
    for path in [*(ROOT / "workflows").rglob("*.py"), *(ROOT / "components").rglob("*.py")]:
        called = [
            ast.unparse(node.func)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
        ]
        assert not {"Console", "rich.print", "sys.stdout.write", "sys.stderr.write"} & set(called), path
        if "workflows" in path.parts and path.name != "cli.py":
            assert "print" not in called, path
