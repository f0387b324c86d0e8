"""The loss from several sides: each number beside the one that full logits of each turn alone give."""

import json
import math

import pytest
import torch

from components.conversations.chat_formats import load_chat_format
from components.conversations.chat_formats.truncation import fit_length
from components.conversations.messages import Conversation
from components.conversations.readers.data_problems import ConversationError
from components.conversations.readers.read import read_conversations
from components.conversations.scripts import dominant_script
from components.data.rows import SeparateRows
from components.data.token_store import Entry, TokenStore, write_store
from components.inference.score import score
from components.models.load_trained import LoadedModel
from components.records.loss_views import MOST_SHOWN, OTHERS, LossSlice, largest_first
from components.training import loss as loss_file
from components.training.evaluate import conversation_losses, score_with_views, scored_model
from components.training.evaluate import score as losses_of
from components.training.turn_totals import TurnTotals
from components.training.workers import OneWorker
from tests.support.kind_talks import THOUGHTFUL
from tests.support.template_kinds import KINDS
from tests.support.toy import assistant, tiny_llama, user
from workflows.evaluate import main as evaluate

MAX_TOKENS = 128
PATH = (user("hi"), assistant("yo", 0.0), user("ok"), assistant("bye"), user("so"), assistant("be kind", 0.5))


def taught_a_little(model, rendered):
    """Some of its tokens are right, and some ends foreseen."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    token_ids = torch.tensor([[rendered.token_ids[node] for node in rendered.path_to(rendered.turn_ends[-1])]])
    for _ in range(30):
        model(input_ids=token_ids, labels=token_ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module", params=["thought_in_newest", "appends"])
def loaded(request):
    """A tiny model. One template shows only the newest thought, so its conversations are trees; the others' are paths."""
    tokenizer = KINDS[request.param].tokenizer()
    chat_format = load_chat_format(tokenizer, "auto")
    return LoadedModel(
        model=taught_a_little(
            tiny_llama(len(tokenizer), tie_word_embeddings=True), chat_format.render(Conversation(messages=PATH))
        ),
        tokenizer=tokenizer,
        chat_format=chat_format,
        device=torch.device("cpu"),
        attention="sdpa",
    )


def conversations_for(loaded):
    plain = "think" not in loaded.chat_format.template
    first = (user("hi"), assistant("yo"), user("ok"), assistant("bye")) if plain else THOUGHTFUL
    return (
        Conversation(messages=first, source="a.jsonl, line 1", tag="kind"),
        Conversation(messages=PATH, source="b.jsonl, line 3"),
    )


def store_of(loaded, tmp_path, conversations=None, max_tokens=MAX_TOKENS):
    path = tmp_path / "data.arrow"
    write_store(
        path,
        [
            Entry(
                source=each.source,
                rendered=fit_length(loaded.chat_format.render(each), max_tokens, truncate=True),
                conversation=each,
            )
            for each in conversations or conversations_for(loaded)
        ],
    )
    return TokenStore(path)


@torch.no_grad()
def by_hand(loaded, conversation):
    """For each scored turn: (tokens up to its end, [(weighted loss, right, stop probability) of each target])."""
    rendered = loaded.chat_format.render(conversation)
    found, before = [], 0
    for end in rendered.turn_ends:
        path = rendered.path_to(end)
        logits = loaded.model(torch.tensor([[rendered.token_ids[node] for node in path]])).logits[0].double()
        targets = []
        for place, node in enumerate(path):
            if node >= before and (weight := rendered.target_weights[node]) > 0:
                probabilities = logits[place - 1].softmax(0)
                token = rendered.token_ids[node]
                stop = sum(float(probabilities[each]) for each in loaded.chat_format.stop_token_ids)
                targets.append(
                    (-weight * math.log(float(probabilities[token])), int(probabilities.argmax()) == token, stop)
                )
        found.append((len(path), targets))
        before = end
    return found


def views_of(loaded, store):
    return score_with_views(loaded, store, max_tokens=MAX_TOKENS, rows_per_batch=2)[1]


def check(each, targets):
    assert each.num_targets == len(targets)
    assert each.loss_sum == pytest.approx(sum(loss for loss, _, _ in targets), abs=1e-4)
    assert each.num_right == sum(right for _, right, _ in targets)


def test_each_side_is_what_full_logits_of_each_turn_alone_give(loaded, tmp_path):
    views = views_of(loaded, store_of(loaded, tmp_path))
    one, other = (by_hand(loaded, each) for each in conversations_for(loaded))
    everything = [target for _, targets in (*one, *other) for target in targets]
    check(views.whole, everything)
    assert 0 < views.whole.num_right < views.whole.num_targets
    assert views.whole.perplexity == pytest.approx(math.exp(views.whole.loss_sum / len(everything)))

    turns = {each.name: each for each in views.sides["turn"]}
    assert list(turns) == ["1", "2", "3"]  # the second conversation's first answer is not scored, and counts
    check(turns["1"], one[0][1])
    check(turns["2"], one[1][1] + other[0][1])
    check(turns["3"], other[1][1])
    check({each.name: each for each in views.sides["source"]}["a.jsonl"], one[0][1] + one[1][1])
    check({each.name: each for each in views.sides["source"]}["b.jsonl"], other[0][1] + other[1][1])
    assert {each.name: each.num_targets for each in views.sides["tag"]} == {
        "kind": sum(len(targets) for _, targets in one),
        "(none)": sum(len(targets) for _, targets in other),
    }


def test_lengths_count_what_a_model_sees_at_the_end_of_a_turn_in_bins_that_double(loaded, tmp_path):
    talk = tuple(message for _ in range(12) for message in (user("hi"), assistant("yo")))
    conversation = Conversation(messages=talk, source="a.jsonl, line 1")
    views = views_of(loaded, store_of(loaded, tmp_path, [conversation], max_tokens=512))
    turns = by_hand(loaded, conversation)
    assert [length for length, _ in turns] == sorted({length for length, _ in turns})
    lengths = {each.name: each for each in views.sides["length"]}
    assert list(lengths) == ["64 or less", "65 to 128", "129 to 256"][: len(lengths)]
    assert len(lengths) > 1
    check(lengths["64 or less"], [target for length, targets in turns if length <= 64 for target in targets])
    check(lengths["65 to 128"], [target for length, targets in turns if 64 < length <= 128 for target in targets])
    late = [target for _, targets in turns[9:] for target in targets]
    check({each.name: each for each in views.sides["turn"]}["10 or later"], late)


def test_ends_are_calibrated_by_bins_of_the_probability_of_a_stop(loaded, tmp_path):
    views = views_of(loaded, store_of(loaded, tmp_path))
    turns = [targets for each in conversations_for(loaded) for _, targets in by_hand(loaded, each)]
    stops = [(stop, number == len(targets)) for targets in turns for number, (_, _, stop) in enumerate(targets, 1)]
    at_ends = [stop for stop, is_end in stops if is_end]
    elsewhere = [stop for stop, is_end in stops if not is_end]
    assert views.ends.num_ends == 4 == len(at_ends)
    assert views.ends.at_ends == pytest.approx(sum(at_ends) / 4, abs=1e-5)
    assert views.ends.elsewhere == pytest.approx(sum(elsewhere) / len(elsewhere), abs=1e-5)
    error = 0.0
    for least in range(10):
        inside = [(stop, is_end) for stop, is_end in stops if least <= min(int(stop * 10), 9) < least + 1]
        error += abs(sum(stop for stop, _ in inside) - sum(is_end for _, is_end in inside)) / len(stops)
    assert views.ends.error == pytest.approx(error, abs=1e-5)
    assert len({int(stop * 10) for stop, _ in stops}) > 1


@pytest.mark.parametrize("at_once", [loss_file.MAX_LOGITS_AT_ONCE, 300])
def test_the_losses_are_the_same_to_the_last_bit_with_and_without_views(loaded, tmp_path, monkeypatch, at_once):
    store = store_of(loaded, tmp_path)
    plain = losses_of(loaded, store, max_tokens=MAX_TOKENS, rows_per_batch=2)
    monkeypatch.setattr(loss_file, "MAX_LOGITS_AT_ONCE", at_once)  # 300: a position or two in each chunk
    monkeypatch.setattr(loss_file, "scores_of_logits", small_chunks_only(at_once, loss_file.scores_of_logits))
    seen, views = score_with_views(loaded, store, max_tokens=MAX_TOKENS, rows_per_batch=2)
    if at_once > 300:
        assert seen == plain
    assert [each.loss_sum for each in seen] == pytest.approx([each.loss_sum for each in plain], rel=1e-6)
    assert views.whole.loss_sum == pytest.approx(sum(each.loss_sum for each in plain), rel=1e-6)


def small_chunks_only(most, scores_of_logits):
    def checked(logits_nV, labels_n, stop_token_ids):
        assert logits_nV.numel() <= most
        return scores_of_logits(logits_nV, labels_n, stop_token_ids)

    return checked


def test_sequences_in_rows_of_their_own_have_the_same_sides_as_trees(loaded, tmp_path):
    store = store_of(loaded, tmp_path)
    totals = TurnTotals.of(store, loaded.chat_format.stop_token_ids)
    rows = SeparateRows(store)
    assert (len(rows) > len(store)) == store.has_forks
    conversation_losses(
        scored_model(loaded), rows, OneWorker(), max_tokens=MAX_TOKENS, rows_per_batch=2, pad_token_id=0, turns=totals
    )
    trees, separate = views_of(loaded, store), totals.views()
    for side, slices in trees.sides.items():
        for one, other in zip(slices, separate.sides[side], strict=True):
            assert (one.name, one.num_targets, one.num_right) == (other.name, other.num_targets, other.num_right)
            assert one.loss_sum == pytest.approx(other.loss_sum, abs=1e-3)
    assert trees.ends.at_ends == pytest.approx(separate.ends.at_ends, abs=1e-4)


def test_turns_that_a_truncation_has_cut_off_are_in_no_side(loaded, tmp_path):
    whole = loaded.chat_format.render(conversations_for(loaded)[1])
    store = store_of(loaded, tmp_path, conversations_for(loaded)[1:], max_tokens=whole.turn_ends[0] + 1)
    assert store.turn_ends(0) == whole.turn_ends[:1]
    assert [each.name for each in views_of(loaded, store).sides["turn"]] == ["2"]


def test_the_smallest_groups_are_added_up():
    slices = [LossSlice(name=f"{n:02}", loss_sum=1.0, num_targets=n, num_right=0) for n in range(1, MOST_SHOWN + 3)]
    shown = largest_first(slices)
    assert (shown[0].name, len(shown)) == (f"{MOST_SHOWN + 2:02}", MOST_SHOWN + 1)
    assert (shown[-1].name, shown[-1].num_targets, shown[-1].loss_sum) == (OTHERS, 3, 2.0)


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Hello, 世界", "latin"),
        ("你好, hello world 世界", "latin"),
        ("今天天气很好 ok", "han"),
        ("これはペンです。日本", "kana"),
        ("안녕하세요", "hangul"),
        ("Привет", "cyrillic"),
        ("42 + 1 = 43 !", "no letters"),
        ("", "no letters"),
    ],
)
def test_the_language_is_the_script_of_most_letters(text, script):
    assert dominant_script(text) == script


# The tag of a record


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def record(**keys):
    return {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}], **keys}


def test_a_tag_is_the_value_of_the_key_that_data_tag_names(tmp_path):
    records = [record(topic="law"), record(topic=3), record(topic=True), record(), record(topic="")]
    read = read_conversations(write(tmp_path / "a.jsonl", *records), tag="topic")
    assert [each.tag for each in read.conversations] == ["law", "3", "true", None, None]
    assert read.unused_keys == {}
    without = read_conversations(str(tmp_path / "a.jsonl"))
    assert {each.tag for each in without.conversations} == {None}
    assert without.unused_keys == {"topic": 3}


def test_a_tag_that_is_no_label_makes_its_record_a_bad_one(tmp_path):
    with pytest.raises(ConversationError, match=r'line 2.*"topic" is the tag \(data.tag\) and must be a text'):
        read_conversations(write(tmp_path / "a.jsonl", record(topic="law"), record(topic=["law"])), tag="topic")


def test_evaluate_shows_the_sides_in_a_table_and_as_json(tiny_model, tmp_path, capsys):
    data = write(tmp_path / "a.jsonl", record(topic="law"), record(topic="art"))
    assert evaluate([str(tiny_model), "--data", data, "--tag", "topic", "--json"]) == 0
    printed = capsys.readouterr()
    views = json.loads(printed.out)["views"]
    assert [each["name"] for each in views["sides"]["tag"]] == ["art", "law"]
    assert views["whole"]["token_accuracy"] == views["whole"]["num_right"] / views["whole"]["num_targets"]
    lines = [line.split() for line in printed.err.splitlines()]
    assert ["language", "latin", "6"] in [line[:3] for line in lines]
    assert "ends of turns: probability" in " ".join(printed.err.split())


def test_a_score_has_the_sides_of_its_conversations(loaded):
    assert score(loaded, conversations_for(loaded), max_tokens=MAX_TOKENS).views.sides.keys() == {
        "turn",
        "length",
        "language",
        "source",
        "tag",
    }
