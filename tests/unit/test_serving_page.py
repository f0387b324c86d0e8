"""The chat page, as a browser gets it, and as a person uses it in one: what they see is what the models say alone."""

import http.client
import json
import os
import re
import subprocess
import tomllib
from contextlib import closing
from fnmatch import fnmatch
from pathlib import Path

import pytest

from components.conversations.messages import Message
from components.experiment.spec import LoraMethod, ModelSpec
from components.inference.generate import reply_to
from components.models.load_trained import load_base, load_trained
from components.registry.package_digest import PACKAGE_DIGEST_TAG
from components.serving.chat_page import FILES, FOLDER
from components.tracking.mlflow_access import open_store
from tests.support.browser import CONTROL, ENTER, ESCAPE, MODELS_EXAMPLE, NO_BROWSER, SHIFT, SPACE, TAB, browsing
from tests.support.servers import until
from tests.support.serving import base_and_adapters, registered, serving
from tests.support.speaking_model import speaking_model_directory
from tests.support.toy import assistant, user

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-some-length"
SECONDS = 30
QUESTIONS = ("say ab", "say cda")
EVIL = "<img src=x onerror=\"document.title='evil'\">"
NAME = "<b>bold</b>@champion"
SPEAKERS = {
    NAME: ["<think>so <i>think</i></think>", f"Hello {EVIL} ", '<call>look {"at": "<b>it</b>"}</call>'],
    "short": ["It is ", "so."],
    "endless": ["on and ", "on, "],
}
in_a_browser = pytest.mark.skipif(NO_BROWSER is not None, reason=str(NO_BROWSER))


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """name -> a base, and two adapters of it."""
    methods = {"small": LoraMethod(rank=2), "dora": LoraMethod(rank=4, dora=True)}
    return base_and_adapters(tmp_path_factory.mktemp("models"), methods)


@pytest.fixture(scope="module")
def server(places):
    with serving({name: str(place) for name, place in places.items()}) as running:
        yield running


@pytest.fixture(scope="module")
def closed(places):
    """For any host, with a token."""
    with serving({"base": str(places["base"])}, hosts=None, token=TOKEN) as running:
        yield running


@pytest.fixture(scope="module")
def speakers(tmp_path_factory):
    """Serves models that say what is given above; one has room for few tokens, one does not end."""
    folder = tmp_path_factory.mktemp("speakers")
    for number, (name, words) in enumerate(SPEAKERS.items()):
        positions = 100 if name == "short" else 4096
        speaking_model_directory(folder / str(number), words, again=name == "endless", positions=positions)
    with serving({name: str(folder / str(number)) for number, name in enumerate(SPEAKERS)}) as running:
        yield running


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with browsing(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def browser(window):
    window.resize(1280)
    window.prefer("light")
    window.console()
    return window


def got(server, path, method="GET", **headers):
    """(status, headers, body)."""
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)) as connection:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()


@pytest.mark.parametrize("path", FILES)
def test_each_file_is_served_with_its_type_and_a_strict_policy(server, path):
    status, headers, body = got(server, path)
    name, kind = FILES[path]
    assert (status, body) == (200, (FOLDER / name).read_bytes())
    assert headers["Content-Type"] == f"{kind}; charset=utf-8"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    policy = dict(part.partition(" ")[::2] for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in headers["Content-Security-Policy"]


def test_the_page_is_for_its_own_hosts_only(server):
    for path in FILES:
        assert got(server, path, Host="evil.example")[0] == 403
        assert got(server, path, Origin="http://evil.example")[0] == 403


def test_the_page_needs_no_token_and_what_is_beside_it_does(closed):
    for path in FILES:
        status, _, body = got(closed, path)
        assert status == 200
        assert TOKEN.encode() not in body
    for path in ("/page", "/page/", "/page.js/", "/PAGE.js", "//", "/page/page.js", "/index.html", "/page.html"):
        assert got(closed, path)[0] == 401, path


def test_the_page_takes_nothing_from_elsewhere_and_makes_no_html_of_text():
    html, css, js = ((FOLDER / name).read_text(encoding="utf-8") for name in ("index.html", "page.css", "page.js"))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|DOMParser", js)
    assert not re.search(r"localStorage|sessionStorage|indexedDB|cookie|caches", js)
    assert not re.search(r"\son\w+=|\sstyle=|<style|javascript:", html)
    addresses = re.findall(r"(?:https?:)?//[\w.]+", html + re.sub(r"//.*", "", js) + css)
    assert set(addresses) == {"http://www.w3.org"}  # the name of SVG, in the icon
    assert re.findall(r"url\(|@import", css) == []


def test_the_wheel_has_every_file_of_the_page():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["components.serving"]
    files = [path.relative_to(FOLDER.parent).as_posix() for path in FOLDER.iterdir()]
    assert sorted(files) == sorted(f"page/{name}" for name, _ in FILES.values())
    assert all(any(fnmatch(file, pattern) for pattern in patterns) for file in files)


# ---- in a browser ----

ANSWERS = """
const column = [...document.querySelectorAll(".column")].find(each => each.ariaLabel === arguments[0]);
const said = (turn, part) => turn.querySelector(part).hidden ? null : turn.querySelector(part).textContent.trim();
return [...column.querySelectorAll(".turn")].map(turn => ({
  question: said(turn, ".question"), words: turn.querySelector(".words").textContent, error: said(turn, ".error"),
  reasoning: said(turn, ".reasoning"), calls: said(turn, ".calls"), state: said(turn, ".state"),
}));
"""


def visit(browser, server, *names, max_tokens=24):
    """Opens the page, and chooses which models answer: all, if none is named."""
    browser.open(f"http://127.0.0.1:{server.port}/")
    browser.until("document.querySelectorAll('.column').length === arguments[0]", len(server.models.models))
    for number, served in enumerate(server.models.models, start=1):
        if names and served.id not in names:
            browser.click(f".choice:nth-of-type({number}) input")
    set_options(browser, max_tokens=str(max_tokens))


def set_options(browser, **fields):
    """`max_tokens="7"` and so on; settings are open only meanwhile."""
    browser.click("#settings summary")
    for name, value in fields.items():
        browser.write(f"#{name.replace('_', '-')}", value)
    browser.click("#settings summary")


def ask(browser, question, *, wait=True):
    first, *further = question.split("\n")
    browser.write("#question", first)
    for line in further:
        browser.press(SHIFT + ENTER, *line)
    browser.press(ENTER)
    if wait:
        browser.until("document.querySelector('#stop').hidden")


def answers(browser, name):
    """Of one model: what is seen of each question."""
    return browser.js(ANSWERS, name)


def copied(browser, number=-1):
    """The command that "Copy as curl" of an answer gives, pasted."""
    browser.js("[...document.querySelectorAll('.column:not([hidden]) .copy')].at(arguments[0]).focus()", number)
    browser.press(ENTER)
    browser.until("document.activeElement.textContent === 'Copied'")
    browser.js("document.querySelector('#question').focus()")
    browser.press(CONTROL + "v")
    text = browser.js("return document.querySelector('#question').value")
    browser.write("#question", "")
    return text


def run(command, **environment):
    """What a shell gets from that command."""
    done = subprocess.run(
        ["bash", "-c", command], env=os.environ | environment, capture_output=True, timeout=SECONDS, check=True
    )
    return json.loads(done.stdout)


def sent(command):
    """The request in a command."""
    return run(f"curl() {{ printf '%s' \"${{!#}}\"; }}; {command}")


@in_a_browser
def test_models_asked_at_once_show_what_each_says_alone(browser, server, places):
    visit(browser, server)
    set_options(browser, temperature="0")
    for question in QUESTIONS:
        ask(browser, question)
    for name, place in places.items():
        loaded = load_base(ModelSpec(path=str(place))) if name == "base" else load_trained(place)
        history = []
        for question, shown in zip(QUESTIONS, answers(browser, name), strict=True):
            history.append(user(question))
            reply = reply_to(loaded, history, max_new_tokens=24)
            history.append(assistant(reply.message.content))
            assert (shown["question"], shown["words"]) == (question, reply.message.content)
            cut = "cut at " if reply.finish_reason == "length" else ""
            assert re.fullmatch(rf"{cut}{reply.new_tokens} tokens?, \d+\.\d s", shown["state"])
    assert browser.console() == []


@in_a_browser
def test_a_system_prompt_is_asked_with_and_a_command_asks_the_same(browser, server, places):
    visit(browser, server, "base")
    set_options(browser, system="be kind", max_tokens="7")
    assert browser.text("#summary") == "temperature 0, at most 7 tokens, a system prompt"
    ask(browser, 'it\'s\n$HOME `x` "y" \\')
    (shown,) = answers(browser, "base")
    messages = [Message(role="system", content="be kind"), user('it\'s\n$HOME `x` "y" \\')]
    loaded = load_base(ModelSpec(path=str(places["base"])))
    assert shown["words"] == reply_to(loaded, messages, max_new_tokens=7).message.content
    assert shown["state"].startswith("cut at 7 tokens")
    command = copied(browser)
    assert command.startswith(f"curl 'http://127.0.0.1:{server.port}/v1/chat/completions' \\\n")
    assert "Authorization" not in command
    assert run(command)["choices"][0]["message"]["content"] == shown["words"]


@in_a_browser
def test_what_a_model_or_a_person_says_is_text(browser, speakers):
    visit(browser, speakers, NAME)
    set_options(browser, system=EVIL)
    ask(browser, EVIL)
    (shown,) = answers(browser, NAME)
    assert (shown["question"], shown["words"]) == (EVIL, f"Hello {EVIL} ")
    assert shown["reasoning"].endswith("so <i>think</i>")
    assert shown["calls"] == 'look({"at": "<b>it</b>"})'
    assert NAME in browser.texts(".name")
    assert NAME in browser.texts(".choice span")
    assert browser.js("return document.querySelectorAll('img, i, b').length") == 0
    assert browser.js("return document.title") == "Turnwise"
    assert browser.js("return document.querySelector('.reasoning:not([hidden])').open") is False
    ask(browser, "again")
    said = sent(copied(browser))["messages"][2]
    assert [call["function"] for call in said.pop("tool_calls")] == [
        {"name": "look", "arguments": '{"at": "<b>it</b>"}'}
    ]
    assert said == {"role": "assistant", "content": f"Hello {EVIL} ", "reasoning_content": "so <i>think</i>"}
    assert browser.console() == []


@in_a_browser
def test_a_reply_is_shown_while_it_is_made_and_can_be_stopped(browser, speakers):
    thread = speakers.models.get("endless").thread
    visit(browser, speakers, "endless", max_tokens=4000)
    for stop in (lambda: browser.press(ESCAPE), lambda: browser.click("#stop")):
        ask(browser, "go", wait=False)
        browser.until("[...document.querySelectorAll('.words')].at(-1).textContent.length > 100")
        assert browser.js("return document.querySelector('.log[aria-busy]') !== null")
        stop()
        browser.until("document.querySelector('#stop').hidden")
        until(lambda: thread.at_work == thread.waiting == 0, SECONDS)
        assert browser.js("return document.querySelector('.log[aria-busy]') === null")
    *_, shown = answers(browser, "endless")
    assert shown["state"] == "stopped"
    assert shown["words"].startswith("on and on, on and ")
    assert browser.focused() == "question"
    first, second = (message["content"] for message in sent(copied(browser))["messages"][:2])
    assert (first, second) == ("go", answers(browser, "endless")[0]["words"])  # it is known as far as it was said


@in_a_browser
def test_reset_ends_what_runs_and_begins_a_new_conversation(browser, speakers):
    visit(browser, speakers, "endless", "short", max_tokens=4000)
    ask(browser, "go", wait=False)
    browser.until("document.querySelectorAll('.words').length === 2")
    browser.click("#reset")
    assert answers(browser, "endless") == answers(browser, "short") == []
    until(lambda: speakers.models.get("endless").thread.at_work == 0, SECONDS)
    set_options(browser, max_tokens="6")
    ask(browser, "hi")
    assert answers(browser, "endless")[0]["words"] == "on and on, " * 3
    assert [message["content"] for message in sent(copied(browser))["messages"]] == ["hi"]


@in_a_browser
def test_an_error_is_in_its_column_and_not_in_its_conversation(browser, speakers):
    visit(browser, speakers, "short", NAME)
    ask(browser, "a" * 120)
    (short,), (other,) = answers(browser, "short"), answers(browser, NAME)
    assert "there is no room for an answer" in short["error"]
    assert (short["words"], short["state"]) == ("", "not answered")
    assert (other["error"], other["words"]) == (None, f"Hello {EVIL} ")
    ask(browser, "hi")
    assert answers(browser, "short")[1]["words"] == "It is so."
    assert [message["content"] for message in sent(copied(browser))["messages"]] == ["hi"]


@in_a_browser
def test_an_error_within_a_stream_gives_the_question_back(browser, speakers):
    visit(browser, speakers, "endless", max_tokens=4000)
    set_options(browser, temperature="0.1")
    head = speakers.models.get("endless").loaded.model.get_output_embeddings().weight
    kept = head.detach().clone()
    ask(browser, "go", wait=False)
    browser.until("document.querySelector('.words')?.textContent.length > 50")
    head.data.fill_(float("nan"))
    browser.until("document.querySelector('#stop').hidden")
    head.data.copy_(kept)
    (failed,) = answers(browser, "endless")
    assert "the model's output is not a number" in failed["error"]
    assert failed["words"].startswith("on and on, on and on, ")
    assert failed["state"] == "broken off"
    assert browser.js("return document.querySelector('#question').value") == "go"
    set_options(browser, max_tokens="4")
    ask(browser, "go")
    assert (answers(browser, "endless")[1]["error"], answers(browser, "endless")[1]["words"]) == (
        None,
        "on and on, " * 2,
    )
    assert [message["content"] for message in sent(copied(browser))["messages"]] == ["go"]


@in_a_browser
def test_a_server_that_is_away_and_a_choice_of_nobody_are_said(browser, places):
    with serving({"base": str(places["base"])}) as server:
        visit(browser, server)
        browser.click(".choice input")
        ask(browser, "hi")
        assert browser.text("#notice span") == "Choose at least one model."
        browser.click(".choice input")
    ask(browser, "hi")
    assert answers(browser, "base")[0]["error"] == "The server cannot be reached."


@in_a_browser
def test_the_page_asks_for_the_token_and_keeps_it_to_itself(browser, closed):
    browser.open(f"http://127.0.0.1:{closed.port}/")
    browser.until("document.querySelector('#token-dialog').open")
    browser.press(ESCAPE)
    browser.until("!document.querySelector('#notice').hidden")
    assert browser.text("#notice span") == "The server wants its token."
    browser.click("#notice button")
    for given in ("another-token", TOKEN):
        browser.until("document.querySelector('#token-dialog').open && document.activeElement.id === 'token'")
        browser.write("#token", given)
        browser.press(ENTER)
        browser.until("document.querySelector('#token').value === ''")
        if given != TOKEN:
            browser.until("!document.querySelector('#token-refused').hidden")
    browser.until("document.querySelectorAll('.column').length === 1")
    set_options(browser, max_tokens="5")
    ask(browser, "hi")
    words = answers(browser, "base")[0]["words"]
    command = copied(browser)
    assert '-H "Authorization: Bearer $TURNWISE_SERVE_TOKEN"' in command
    assert run(command, TURNWISE_SERVE_TOKEN=TOKEN)["choices"][0]["message"]["content"] == words != ""
    seen = browser.js("return document.documentElement.outerHTML + document.querySelector('#token').value")
    assert TOKEN not in seen + command
    assert browser.js("return [localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
    browser.open(f"http://127.0.0.1:{closed.port}/")
    browser.until("document.querySelector('#token-dialog').open")


@in_a_browser
def test_a_browser_that_lends_no_clipboard_shows_the_command(browser, closed):
    browser.open(f"http://{MODELS_EXAMPLE}:{closed.port}/")
    browser.until("document.querySelector('#token-dialog').open")
    browser.write("#token", TOKEN)
    browser.press(ENTER)
    browser.until("document.querySelectorAll('.column').length === 1")
    ask(browser, "hi")
    browser.click(".copy")
    browser.until("document.querySelector('#copy-dialog').open")
    command = browser.js("return document.getSelection().toString() || document.querySelector('#copy-text').value")
    assert command.startswith(f"curl 'http://{MODELS_EXAMPLE}:{closed.port}/v1/chat/completions'")
    assert browser.focused() == "copy-text"
    browser.press(ESCAPE)
    browser.until("!document.querySelector('#copy-dialog').open")


@in_a_browser
def test_a_column_says_which_version_answers_and_why_no_newer_one(browser, places, tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = open_store(uri)
    for number, name in enumerate(("small", "dora"), start=1):
        assert registered(uri, "support", places[name], tmp_path / str(number)) == str(number)
    client.set_registered_model_alias("support", "champion", "1")
    with serving({"support": "models:/support@champion"}, tracking=uri) as server:
        visit(browser, server)
        browser.until("document.querySelector('.facts').textContent === 'version 1'")
        client.set_registered_model_alias("support", "champion", "2")
        until(lambda: server.models.get("support").version == "2", SECONDS)
        ask(browser, "hi")
        browser.until("document.querySelector('.facts').textContent === 'version 2'")
        registered(uri, "support", places["small"], tmp_path / "3", tags={PACKAGE_DIGEST_TAG: "0" * 64})
        client.set_registered_model_alias("support", "champion", "3")
        until(lambda: server.models.problems, SECONDS)
        ask(browser, "hi")
        browser.until("!document.querySelector('.problem').hidden")
        assert "version 3 does not serve" in browser.text(".problem")
        assert [turn["error"] for turn in answers(browser, "support")] == [None, None]


@in_a_browser
def test_everything_is_reached_and_done_by_keys(browser, speakers):
    browser.open(f"http://127.0.0.1:{speakers.port}/")
    browser.until("document.activeElement.id === 'question' && document.querySelectorAll('.column').length === 3")
    browser.press(SHIFT + TAB, SPACE, TAB)  # opens the settings
    reached = "document.activeElement.id === arguments[0]"
    for field, value in (("system", "be kind"), ("temperature", "0"), ("max-tokens", "4")):
        browser.until(reached, field)
        browser.press(CONTROL + "a", *value, TAB)
    browser.until(reached, "question")
    browser.press("a", SHIFT + ENTER, "b", ENTER)
    browser.until("document.querySelectorAll('.turn').length === 3 && document.querySelector('#stop').hidden")
    assert [answers(browser, name)[0]["question"] for name in SPEAKERS] == ["a\nb"] * 3
    assert browser.js("return document.querySelector('#question').value") == ""
    found = []
    for _ in range(30):
        browser.press(TAB)
        found.append(browser.js("return document.activeElement.className || document.activeElement.id"))
    wanted = ("log", "copy quiet", "system", "temperature", "max-tokens", "question", "strong", "quiet")
    assert set(wanted) <= set(found)
    assert found.count("log") >= 3
    unnamed = "[...document.querySelectorAll('input, textarea')].filter(e => !e.labels.length).length"
    assert browser.js(f"return {unnamed}") == 0


@in_a_browser
def test_a_phone_shows_one_column_and_scrolls_no_page_sideways(browser, speakers):
    browser.resize(390, 844, phone=True)
    visit(browser, speakers)
    ask(browser, "w" * 300)
    browser.click("#settings summary")
    wide, there, first = browser.js(
        "return [document.documentElement.scrollWidth, innerWidth, document.querySelector('.column').offsetWidth]"
    )
    assert wide == there == 390
    assert 300 < first < 390
    browser.js("document.querySelectorAll('.log')[2].focus()")
    browser.until("document.querySelectorAll('.column')[2].getBoundingClientRect().right <= 390")
    below = browser.js("return document.querySelector('#send').getBoundingClientRect().bottom <= innerHeight")
    assert below


# (the least contrast, of what) of all that is shown; WCAG 2 asks for 4.5
CONTRAST = """
const light = color => color.match(/[\\d.]+/g).slice(0, 3).map(Number).map(value => value / 255)
  .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
  .reduce((sum, value, place) => sum + value * [0.2126, 0.7152, 0.0722][place], 0);
const behind = element => {
  const color = getComputedStyle(element).backgroundColor;
  return color === "rgba(0, 0, 0, 0)" && element.parentElement ? behind(element.parentElement) : color;
};
const ratio = element => {
  const [more, less] = [light(getComputedStyle(element).color), light(behind(element))].sort((a, b) => b - a);
  return (more + 0.05) / (less + 0.05);
};
const shown = [...document.querySelectorAll("body *")].filter(
  element => element.checkVisibility() && [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()));
return shown.map(element => [ratio(element), element.className || element.tagName]).sort((a, b) => a[0] - b[0])[0];
"""


@in_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(browser, speakers, scheme):
    browser.prefer(scheme)
    visit(browser, speakers)
    ask(browser, "a" * 120)
    browser.click(".reasoning:not([hidden]) summary")
    paper = browser.js("return getComputedStyle(document.body).backgroundColor")  # rgb(20, 25, 27)
    assert (int(re.findall(r"\d+", paper)[0]) < 100) == (scheme == "dark")
    least, what = browser.js(CONTRAST)
    assert least >= 4.5, what
