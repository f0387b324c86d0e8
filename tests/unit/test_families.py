"""Every family of models through everything that is done with one: trees, packing, checkpointing, saving, loading, replies.

Six families are in every run; the others have the marker `families` (make families).
"""

import json

import pytest
import torch
from peft.tuners.lora.layer import Linear
from torch import nn
from transformers import AutoModelForCausalLM

from components.conversations.chat_formats.rendered import RenderedConversation, merge_sequences
from components.data.collate import collate
from components.data.prepare import PreparedDataset, prepare
from components.data.rows import rows_of
from components.data.token_store import Entry, TokenStore, write_store
from components.errors import InputError
from components.experiment.spec import (
    BatchSpec,
    BudgetSpec,
    DataSpec,
    ExperimentSpec,
    FullMethod,
    LoraMethod,
    ModelSpec,
    OptimizerSpec,
    SearchSpec,
    TrialSpec,
)
from components.inference.generate import reply_to
from components.models.adapters import attach_lora, merge
from components.models.attention_backend import usable_attention
from components.models.base.load_base import config_of as read_config
from components.models.base.reference import BaseReference
from components.models.digest import model_digest
from components.models.load_trained import load_trained
from components.models.modality_towers import train_what_text_reaches
from components.storage.open_folder import folder_at
from components.training.evaluate import score
from components.training.model_abilities import probe_model
from components.training.model_settings import abilities_for, settle
from components.training.training_data import TrainingData
from components.training.trial_runner import TrialRunner
from components.training.workers import OneWorker, TorchWorkers
from tests.support.co_trials import group_of, joined, reports_together
from tests.support.families import scored_model
from tests.support.processes import run_together
from tests.support.sessions import curve, reports
from tests.support.tiny_models import trained_a_little
from tests.support.toy import save_letter_tokenizer, user
from tests.support.zoo import ALWAYS, FAMILIES, config_of, family_directory, family_model

PAD, MAX_TOKENS = 0, 128
OTHERS = tuple(family for family in FAMILIES if family not in ALWAYS)
EACH = [family if family in ALWAYS else pytest.param(family, marks=pytest.mark.families) for family in FAMILIES]
# It shows the newest answer's thought only, so a conversation of several turns is a tree.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role[0] }}"
    "{% if m.role == 'assistant' and loop.last and m.reasoning_content %}[{{ m.reasoning_content }}]{% endif %}"
    "{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>a{% endif %}"
)
METHODS = {"lora": LoraMethod(rank=2, alpha=4.0), "full": FullMethod()}
QUESTIONS = ["say ab", "and c?", "say abc", "d", "say da", "a b c", "again", "ca"]


def numbers(seed, count):
    return torch.randint(4, 110, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def answering(prompt, answer, weight=1.0):
    return [*prompt, *answer], [0.0] * len(prompt) + [weight] * len(answer)


def tree(seed):
    """Three turns whose thoughts are gone when the next one begins; longer than the windows of the families."""
    history, sequences = numbers(seed, 6), []
    for turn in range(3):
        prompt = [*history, *numbers(seed + turn + 10, 4)]
        sequences.append(
            answering(prompt, [*numbers(seed + turn + 20, 3), *numbers(seed + turn + 30, 3)], 1.0 - turn / 4)
        )
        history = [*prompt, *numbers(seed + turn + 30, 3)]
    return merge_sequences(sequences)


def path(seed):
    tokens, weights = answering(numbers(seed, 9), numbers(seed + 1, 5))
    return RenderedConversation(token_ids=tokens, target_weights=weights, turn_ends=[len(tokens)])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    file = tmp_path_factory.mktemp("store") / "trees.arrow"
    write_store(file, [Entry(source="a", rendered=each) for each in (tree(100), path(200), tree(300))])
    return TokenStore(file)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    save_letter_tokenizer(folder / "tokenizer", THINKING)
    with (folder / "data.jsonl").open("w") as file:
        for first in range(24):
            messages = []
            for turn in range(1 + first % 3):
                asked = QUESTIONS[(first + turn) % len(QUESTIONS)]
                messages += [
                    {"role": "user", "content": asked},
                    {"role": "assistant", "content": f"{asked[-2:]}{first}", "reasoning_content": f"{asked[0]}..."},
                ]
            file.write(json.dumps({"messages": messages}) + "\n")
    data = DataSpec(train=str(folder / "data.jsonl"), eval_fraction=0.3, max_tokens=MAX_TOKENS)
    dataset = prepare(data, model_path=folder / "tokenizer", chat_format="auto", storage=folder_at(folder))
    assert dataset.train.has_forks
    assert dataset.eval.has_forks
    return dataset


# Trees


def passed(scored, rows, batches):
    """The loss of these batches of rows, and its gradients as one vector."""
    scored.zero_grad()
    loss = sum(float(_backward(scored(collate(rows, batch, PAD)))) for batch in batches)
    trained = [weight for weight in scored.parameters() if weight.requires_grad]
    return loss, torch.cat([(torch.zeros_like(each) if each.grad is None else each.grad).flatten() for each in trained])


def _backward(loss):
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("family", EACH)
def test_a_tree_has_the_loss_and_the_gradients_of_its_separate_rows(family, store):
    torch.set_num_threads(1)
    attention = usable_attention("auto", config_of(family))
    abilities = probe_model(config_of(family), attention, longest=MAX_TOKENS)
    model = family_model(family, attn_implementation=attention)
    train_what_text_reaches(model)
    scored = scored_model(model, attention=attention).eval()
    separate = rows_of(store, separate=True)
    expected_loss, expected = passed(scored, separate, [[(index,)] for index in range(len(separate))])
    rows = rows_of(store, separate=abilities.layout == "separate")
    each = [(index,) for index in range(len(rows))]
    ways = {"alone": [[row] for row in each], "padded": [each], "two and the rest": [each[:2], each[2:]]}
    if abilities.packs:
        ways["packed"] = [[tuple(range(len(rows)))]]
        ways["packed and alone"] = [[(2, 0)], [(1,), *each[3:]]]
    for way, batches in ways.items():
        loss, gradients = passed(scored, rows, batches)
        assert loss == pytest.approx(expected_loss, rel=1e-5), way
        assert float((gradients - expected).norm() / expected.norm()) <= 1e-5, way


@pytest.mark.parametrize("tied", [True, False])
def test_a_pad_token_that_is_the_stop_too_is_scored_as_the_stop_only(tied, prepared):
    stop, other = 3, 0
    config = config_of("llama")
    config.pad_token_id, config.tie_word_embeddings = stop, tied
    torch.manual_seed(0)
    scored = scored_model(AutoModelForCausalLM.from_config(config)).eval()
    rows = [(0, 1), (2,)]  # of unequal lengths
    batch = collate(prepared.train, rows, stop)
    assert (batch.token_ids_BT[batch.segment_ids_BT == 0] == stop).any()
    turns = sum(1 + len(prepared.train.forks(index)) for row in rows for index in row)
    assert int((batch.labels_BT == stop).sum()) == turns
    assert (batch.labels_BT[batch.segment_ids_BT == 0] == -100).all()
    with torch.no_grad():
        assert float(scored(batch)) == pytest.approx(float(scored(collate(prepared.train, rows, other))), rel=1e-6)


# Trials


def runner(directory, dataset, folder, workers=None):
    """A runner as a worker of a search makes it, with what was decided when the search was opened."""
    experiment = ExperimentSpec(
        name="x",
        model=ModelSpec(path=str(directory)),
        data=DataSpec(train="data.jsonl", max_tokens=MAX_TOKENS),
        search=SearchSpec(space={name: {"method": {"kind": name}} for name in METHODS}),
    )
    config = read_config(directory)
    settings = settle(experiment, config, abilities_for(experiment, config), has_trees=True)
    data = TrainingData(dataset=dataset, max_tokens=MAX_TOKENS, pad_token_id=PAD, layout=settings.layout)
    base = BaseReference(model=settings.experiment.model, digest=model_digest(directory), chat_format="auto")
    return TrialRunner(settings.experiment.model, data, workers or OneWorker(), base, folder_at(folder)), settings


def spec_of(method, settings, **changes):
    packing = settings.experiment.trial.batch.packing
    return TrialSpec(
        method=METHODS[method],
        optimizer=OptimizerSpec(learning_rate=1e-2 if method == "lora" else 2e-3),
        batch=BatchSpec(rows_per_step=4, rows_per_micro_batch=2, packing=packing),
        budget=BudgetSpec(epochs=3.0, evaluations=2),
        precision="fp32",
        **changes,
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", EACH)
def test_a_family_is_trained_saved_loaded_and_answers(family, method, prepared, tmp_path):
    torch.set_num_threads(1)
    directory = family_directory(tmp_path / "model", family, THINKING)
    of, settings = runner(directory, prepared, tmp_path / "checkpoints")
    progress = reports(of, spec_of(method, settings))
    assert progress[-1].eval_loss < progress[0].steps[0].loss
    loaded = load_trained(folder_at(progress[-1].checkpoint).download(), device=torch.device("cpu"))
    assert loaded.attention == settings.experiment.model.attention
    found = score(loaded, prepared.eval, max_tokens=MAX_TOKENS, rows_per_batch=2)
    mean = sum(each.loss_sum for each in found) / sum(each.num_targets for each in found)
    assert mean == pytest.approx(progress[-1].eval_loss, rel=1e-5)
    assert 0 < reply_to(loaded, [user("say ab")], max_new_tokens=4).new_tokens <= 4
    recomputed, _ = runner(directory, prepared, tmp_path / "recomputed")
    again = reports(recomputed, spec_of(method, settings, gradient_checkpointing=True))
    assert curve(again) == pytest.approx(curve(progress), rel=1e-4)


@pytest.mark.parametrize("family", EACH)
def test_two_trials_in_one_pass_train_as_each_alone(family, prepared, tmp_path):
    torch.set_num_threads(1)
    directory = family_directory(tmp_path / "model", family, THINKING)
    alone, settings = runner(directory, prepared, tmp_path / "alone")
    one = spec_of("lora", settings)
    other = spec_of("lora", settings, seed=1).model_copy(
        update={"batch": one.batch.model_copy(update={"rows_per_step": 3, "rows_per_micro_batch": 3})}
    )
    of, _ = runner(directory, prepared, tmp_path / "together")
    group = group_of(of, one)
    adapted = [
        layer for layer in attach_lora(family_model(family), METHODS["lora"]).modules() if hasattr(layer, "lora_A")
    ]
    if not all(type(layer.get_base_layer()) is nn.Linear and isinstance(layer, Linear) for layer in adapted):
        with pytest.raises(InputError, match="only plain linear layers take several trials' adapters"):
            joined(of, group, one)
        return
    trainers = [joined(of, group, spec) for spec in (one, other)]
    expected = [curve(reports(alone, spec)) for spec in (one, other)]
    for progress, losses in zip(reports_together(group, trainers), expected, strict=True):
        assert curve(progress) == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("family", EACH)
def test_adapters_of_all_linear_layers_learn_and_can_be_merged(family, store):
    torch.set_num_threads(1)
    attention = usable_attention("auto", config_of(family))
    torch.manual_seed(0)
    adapted = attach_lora(family_model(family, attn_implementation=attention), METHODS["lora"])
    scored = scored_model(adapted, attention=attention).eval()
    scored(collate(rows_of(store, separate=True), [(0,), (1,)], PAD)).backward()
    adapters = {name: weight for name, weight in adapted.named_parameters() if "lora_B" in name}
    assert adapters
    assert [name for name, weight in adapters.items() if weight.grad is None or not weight.grad.any()] == []
    tokens = torch.arange(4, 20)[None]
    with torch.no_grad():
        before = trained_a_little(adapted)(input_ids=tokens, use_cache=False).logits
        after = merge(adapted).eval()(input_ids=tokens, use_cache=False).logits
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)


def curves_of(families, models, data, folder, workers):
    """The losses of a trial of each method, by family."""
    dataset, curves = PreparedDataset.open(data), {}
    for family in families:
        of, settings = runner(models / family, dataset, folder / family, workers)
        curves[family] = {method: curve(reports(of, spec_of(method, settings))) for method in METHODS}
    return curves


def train_with_two(rank, families, models, data, folder):
    return curves_of(families, models, data, folder, TorchWorkers(torch.device("cpu")))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("families", [ALWAYS, pytest.param(OTHERS, marks=pytest.mark.families)], ids=["six", "others"])
def test_two_workers_train_as_one(families, prepared, tmp_path):
    torch.set_num_threads(1)
    for family in families:
        family_directory(tmp_path / family, family, THINKING)
    alone = curves_of(families, tmp_path, prepared.directory, tmp_path / "alone", OneWorker())
    together, _ = run_together(
        train_with_two, families, tmp_path, prepared.directory, tmp_path / "two", folder=tmp_path / "run", seconds=1200
    )
    for family in families:
        for method in METHODS:
            assert together[family][method] == pytest.approx(alone[family][method], rel=1e-4), (family, method)
