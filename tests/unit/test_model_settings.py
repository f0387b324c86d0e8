"""What an experiment leaves to the model is decided before anything starts, and what a model cannot do is an error there."""

import pytest
import torch
from transformers import AutoConfig, LlamaConfig

from components.errors import InputError
from components.experiment.spec import DataSpec, ExperimentSpec, ModelSpec, SearchSpec
from components.models.skeleton import skeletons
from components.training import model_settings
from components.training.model_abilities import ModelAbilities, probe_model
from components.training.model_settings import abilities_for, settle
from tests.support.zoo import config_of

MAX_TOKENS = 128


def experiment(*, attention="auto", space=None, trial=None, resources=None):
    return ExperimentSpec.model_validate(
        {
            "name": "x",
            "model": ModelSpec(path="a model", attention=attention),
            "data": DataSpec(train="a.jsonl", max_tokens=MAX_TOKENS),
            "search": SearchSpec(space=space or {"lora": {"method": {"kind": "lora"}}}),
            "trial": {"precision": "bf16", **(trial or {})},
            "resources": resources or {},
        }
    )


def settled(of, family, *, has_trees=False):
    config = config_of(family)
    return settle(of, config, abilities_for(of, config), has_trees=has_trees)


# The skeleton


def skeleton(config, *, longest=MAX_TOKENS):
    return next(skeletons(config, "sdpa", longest=longest))


def test_a_skeleton_has_one_layer_of_each_kind_and_short_windows():
    config = AutoConfig.for_model("gemma3_text", hidden_size=64, head_dim=16, num_hidden_layers=26, sliding_window=64)
    small = skeleton(config).config
    assert small.layer_types == ["sliding_attention"] * 5 + ["full_attention"]
    assert (small.num_hidden_layers, small.sliding_window, small.vocab_size) == (6, 4, 512)
    assert config.num_hidden_layers == 26


def test_a_window_that_no_row_exceeds_hides_nothing_of_what_is_tried():
    config = AutoConfig.for_model(
        "mistral", hidden_size=64, intermediate_size=64, num_hidden_layers=4, sliding_window=16
    )
    assert [skeleton(config, longest=longest).config.sliding_window for longest in (16, 17)] == [64, 4]


def test_the_skeleton_of_a_large_model_is_narrow_and_has_few_experts():
    config = AutoConfig.for_model("qwen3_moe", hidden_size=4096, num_attention_heads=64, moe_intermediate_size=1536)
    small = skeleton(config)
    assert sum(weight.numel() for weight in small.parameters()) < 5_000_000
    assert (small.config.num_attention_heads, small.config.num_key_value_heads, small.config.num_experts) == (4, 2, 16)


def test_random_weights_of_a_skeleton_leave_the_random_numbers_of_the_process_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    skeleton(LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2))
    assert torch.rand(1) == expected


# What is measured


@pytest.mark.parametrize(
    ("family", "attention", "packs", "takes_trees"),
    [
        ("llama", "sdpa", True, True),
        ("llama", "eager", True, True),
        ("gemma3_text", "sdpa", True, True),
        ("mistral", "sdpa", True, True),
        ("llama4_text", "sdpa", True, True),
        ("opt", "sdpa", False, True),
        ("gpt_neo", "eager", True, False),
        ("bloom", "eager", False, False),
        ("mamba2", "eager", False, False),
        ("falcon_h1", "sdpa", False, False),
        ("llama", "flash_attention_2", True, False),
    ],
)
def test_what_a_family_can_do_is_measured(family, attention, packs, takes_trees):
    abilities = probe_model(config_of(family), attention, longest=MAX_TOKENS)
    assert (abilities.packs, abilities.takes_trees) == (packs, takes_trees)


def test_a_window_counts_only_where_rows_are_longer_than_it():
    assert probe_model(config_of("gpt_neo"), "eager", longest=8).takes_trees  # its window is 8


def test_reasons_are_sentences_about_conversations():
    assert probe_model(config_of("bloom"), "eager", longest=MAX_TOKENS).reasons == (
        "packed conversations would see each other",
        "it takes no masks of trees (ValueError: too many values to unpack (expected 2))",
    )


def test_a_model_is_tried_once(monkeypatch):
    first = probe_model(config_of("llama"), "sdpa", longest=MAX_TOKENS)
    assert probe_model(config_of("llama"), "sdpa", longest=MAX_TOKENS) is first


# The decision


@pytest.mark.parametrize(
    ("family", "has_trees", "attention", "packing", "layout", "sentence"),
    [
        ("llama", False, "sdpa", "auto", "trees", "precision bf16, attention sdpa, rows packed"),
        (
            "llama",
            True,
            "sdpa",
            "auto",
            "trees",
            "precision bf16, attention sdpa, rows packed, each conversation in one pass, whatever its template rewrites",
        ),
        ("gemma2", False, "eager", "auto", "trees", "precision bf16, attention eager, rows packed"),
        (
            "opt",
            False,
            "sdpa",
            False,
            "trees",
            "precision bf16, attention sdpa, rows not packed (packed conversations would see each other)",
        ),
        (
            "mamba2",
            True,
            "eager",
            False,
            "separate",
            "precision bf16, attention eager, rows not packed (packed conversations would see each other), what a"
            " template rewrites in rows of its own (the paths of a tree would see each other)",
        ),
    ],
)
def test_what_is_left_to_the_model_is_decided_and_said(family, has_trees, attention, packing, layout, sentence):
    found = settled(experiment(), family, has_trees=has_trees)
    assert (found.experiment.model.attention, found.experiment.trial.batch.packing) == (attention, packing)
    assert (found.layout, found.sentence) == (layout, sentence)


def test_what_is_written_stays_as_it_is():
    found = settled(experiment(attention="eager", trial={"batch": {"packing": False}}), "llama")
    assert (found.experiment.model.attention, found.experiment.trial.batch.packing) == ("eager", False)
    assert found.sentence == "precision bf16, attention eager, rows not packed"


def test_a_branch_that_leaves_its_packing_to_the_model_gets_a_value_too():
    space = {
        "lora": {"batch": {"packing": "auto"}},
        "tried": {"batch": {"packing": {"choice": ["auto", False]}, "rows_per_step": 4}},
        "plain": {"optimizer": {"learning_rate": 1e-3}},
    }
    found = settled(experiment(space=space), "opt").experiment.search.space
    assert found == {
        "lora": {"batch": {"packing": False}},
        "tried": {"batch": {"packing": {"choice": [False]}, "rows_per_step": 4}},
        "plain": {"optimizer": {"learning_rate": 1e-3}},
    }


GPUS = {"lora": {"gpus_per_worker": 1}}


@pytest.mark.parametrize(
    ("expected", "changes"),
    [
        ("flash_attention_2", {}),
        ("sdpa", {"has_trees": True}),
        ("sdpa", {"usable": False}),
        ("sdpa", {"resources": {}}),
        ("sdpa", {"trial": {"precision": "fp32"}}),
        ("sdpa", {"family": "opt", "has_flash": False}),
    ],
)
def test_flash_attention_is_taken_only_where_nothing_speaks_against_it(expected, changes, monkeypatch):
    monkeypatch.setattr(model_settings, "is_usable", lambda attention: changes.get("usable", True))
    of = experiment(resources=changes.get("resources", GPUS), trial=changes.get("trial"))
    config = config_of("llama")
    abilities = ModelAbilities(attention="sdpa", has_flash=changes.get("has_flash", True))
    found = settle(of, config, abilities, has_trees=changes.get("has_trees", False))
    assert found.experiment.model.attention == expected


# What cannot work


@pytest.mark.parametrize(
    ("family", "asked", "expected"),
    [
        ("gemma2", {"attention": "sdpa"}, "model.attention: a gemma2 has no sdpa; set model.attention: auto"),
        (
            "rwkv",
            {"attention": "flash_attention_2", "resources": GPUS},
            "model.attention: a rwkv has no flash_attention_2; set model.attention: auto",
        ),
        (
            "opt",
            {"trial": {"batch": {"packing": True}}},
            "search.space.lora: batch.packing: true, but in a opt packed conversations would see each other; set"
            " batch.packing: auto",
        ),
        (
            "opt",
            {"space": {"one": {"batch": {"packing": {"choice": [True, False]}}}}},
            "search.space.one: batch.packing: true, but in a opt packed conversations would see each other; set"
            " batch.packing: auto",
        ),
    ],
)
def test_what_a_model_cannot_do_is_an_error_with_a_way_out(family, asked, expected):
    with pytest.raises(InputError) as caught:
        abilities_for(experiment(**asked), config_of(family))
    assert str(caught.value) == f"1 problem\n  {expected}"


def test_layers_that_cannot_be_recomputed_or_sharded_are_an_error(monkeypatch):
    cannot = ModelAbilities(attention="sdpa", checkpoints=False, shards=False)
    monkeypatch.setattr(model_settings, "probe_model", lambda *_, **__: cannot)
    of = experiment(
        space={"full": {"method": {"kind": "full"}}},
        trial={"gradient_checkpointing": True},
        resources={"full": {"parallel": "fsdp", "workers": 2}},
    )
    with pytest.raises(InputError) as caught:
        abilities_for(of, config_of("llama"))
    assert str(caught.value).splitlines()[1:] == [
        "  search.space.full: a llama cannot recompute its activations; set gradient_checkpointing: false",
        "  resources.full: a llama does not say what its layers are, so it cannot be sharded; set parallel: ddp",
    ]


def test_a_model_that_cannot_be_trained_on_text_is_an_error_before_the_search():
    config = config_of("llama4_text")
    config.num_experts_per_tok = 9  # of four
    with pytest.raises(
        InputError, match=r"^model.path=a model: a llama4_text cannot be trained on text here: RuntimeError"
    ):
        abilities_for(experiment(), config)
