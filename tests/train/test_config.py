"""Recipes: those that ship can be built, and what is wrong in one is said in one line."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cm3leon.model import ModelConfig
from tokenizer import config as settings
from tokenizer.errors import UserError
from train import config
from train.config import OptimizerConfig, PretrainRecipe, TextTokenizerRecipe
from train.retriever import contrastive as encoder
from train.retriever.contrastive import EncoderRecipe
from train.schedule import Schedule
from train.tokenizers.recipe import ImageTokenizerRecipe

PLACES = {
    "pretrain": ("shards=s", "image_tokenizer=i", "text_tokenizer=t.model"),
    "tune": ("shards=s",),
    "image-tokenizer": ("data=tars",),
    "text-tokenizer": ("data=tars",),
    "encoder": (
        "data=tars",
        "text_tokenizer=t.model",
        "image_tokenizer=i",
        "features=f.safetensors",
    ),
}
KINDS: dict[str, Any] = {
    "pretrain": PretrainRecipe,
    "tune": PretrainRecipe,
    "image-tokenizer": ImageTokenizerRecipe,
    "text-tokenizer": TextTokenizerRecipe,
    "encoder": EncoderRecipe,
}
COMMANDS = {
    "pretrain": "cm3leon pretrain",
    "tune": "cm3leon tune",
    "image-tokenizer": "cm3leon train",
    "text-tokenizer": "cm3leon train",
    "encoder": "cm3leon train",
}


def job_of(name: str) -> str:
    return "tune" if name == "tune" else str(settings.read(config.shipped()[name])["job"])


def load(name: str, *changes: str) -> Any:
    """A recipe with the places that every run must name, and changes."""
    job = job_of(name)
    if job == "tune":  # what it leaves out is the model's that it tunes
        return config.load_pretrain(name, [*PLACES[job], *changes], "default")
    if job == "pretrain":
        return config.load_pretrain(name, [*PLACES[job], *changes])
    if job == "encoder":
        return encoder.load(name, [*PLACES[job], *changes])
    return config.load(KINDS[job], name, [*PLACES[job], *changes])


@pytest.mark.parametrize("name", sorted(config.shipped()))
def test_every_shipped_recipe_builds_and_reads_back(name: str) -> None:
    recipe = load(name)
    assert settings.build(KINDS[job_of(name)], settings.table_of(recipe)) == recipe
    assert load(name, f"job={recipe.job}") == recipe


@pytest.mark.parametrize("name", sorted(config.shipped()))
def test_every_shipped_recipe_opens_with_its_command_and_what_to_expect(name: str) -> None:
    path = config.shipped()[name]
    head = "".join(line for line in path.read_text().splitlines(True) if line.startswith("#"))
    command = f"{COMMANDS[job_of(name)]} {name} "
    assert command in head
    assert "Expect" in head
    said = head[head.index(command) :].partition("# Expect")[0]
    given = re.findall(r"([a-z_.]+)=(\S+)", said)
    recipe = load(name, *(f"{setting}={value}" for setting, value in given))
    table: Any = settings.table_of(recipe)
    for setting, value in given:
        found = table
        for part in setting.split("."):
            found = found[part]
        assert str(found).lower() == value.lower()
    assert {place.partition("=")[0] for place in PLACES[job_of(name)]} <= {k for k, _ in given}


@pytest.mark.parametrize("name", sorted(config.shipped()))
def test_a_place_that_is_not_named_is_asked_for(name: str) -> None:
    job = job_of(name)
    first = PLACES[job][0].partition("=")[0]
    complaint, loader = f"missing .* '{first}'", partial(config.load, KINDS[job])
    if KINDS[job] is PretrainRecipe:
        complaint = "name either shards or sources"
        loader = partial(config.load_pretrain, init="default" if job == "tune" else None)
    with pytest.raises(UserError, match=complaint):
        loader(name, PLACES[job][1:])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("stepz=5", "unknown setting 'stepz'; did you mean 'steps'?"),
        ("model.widht=5", "unknown setting 'model.widht'; did you mean 'width'?"),
        ("rows.form={}", "unknown setting 'rows.form'; did you mean 'forms'?"),
        ("mask.spans=1", "unknown setting 'mask.spans'; did you mean 'spans_m"),
        ("schedule.peek=1", "unknown setting 'schedule.peek'; did you mean 'peak'?"),
        ("steps=many", "setting 'steps' is 'many'; it must be a whole number"),
        ("schedule.decay=slow", "'slow'; it must be one of linear, cosine, wsd"),
        ("rows.forms={pear: 1.0}", "unknown form 'pear'; known: pair, described"),
        ("optimizer.betas=[0.9]", "must be a list of 2"),
        ("model.heads=3", "is not a multiple of heads 3"),
        ("sample_every=0", "sample_every must be at least 1, got 0"),
        ("seed=-1", "seed must be at least 0, got -1"),
    ],
)
def test_a_wrong_setting_is_named(change: str, complaint: str) -> None:
    with pytest.raises(UserError, match=re.escape(complaint)) as error:
        load("emoji-64", change)
    assert "\n" not in str(error.value)


def test_a_recipe_is_found_by_name_or_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("job: text-tokenizer\ndata: tars\npieces: 300\n")
    found = config.load(TextTokenizerRecipe, str(path), ["pieces=400"])
    assert (found.data, found.pieces) == ("tars", 400)
    with pytest.raises(
        UserError, match=r"no recipe 'emoji-46': neither a file nor one of .*emoji-64"
    ):
        config.load_pretrain("emoji-46", [])
    with pytest.raises(
        UserError, match="its job is 'text-tokenizer', this command wants 'pretrain'"
    ):
        config.load_pretrain(str(path), [])
    path.write_text("pieces: 300\n")
    with pytest.raises(UserError, match="its job is 'None'"):
        config.load(TextTokenizerRecipe, str(path), [])


def test_the_vocabulary_is_computed_unless_it_agrees() -> None:
    recipe = load("emoji-64")
    assert recipe.model.vocabulary == config.UNKNOWN
    whole = config.with_vocabulary(recipe, 840)
    assert whole.model == replace(recipe.model, vocabulary=840)
    assert config.with_vocabulary(whole, 840) == whole
    with pytest.raises(UserError, match=r"model\.vocabulary is 840, but the tokenizers make 848"):
        config.with_vocabulary(whole, 848)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"betas": (0.9, 1.0)}, "each must be at least 0 and below 1"),
        ({"betas": (-0.1, 0.9)}, "each must be at least 0 and below 1"),
        ({"eps": 0.0}, "eps and clip must be above 0"),
        ({"clip": -1.0}, "eps and clip must be above 0"),
        ({"weight_decay": -0.1}, "weight_decay at least 0"),
    ],
)
def test_an_impossible_optimiser_is_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        OptimizerConfig(**change)


def test_the_defaults_are_the_papers_where_it_speaks() -> None:
    model = ModelConfig(vocabulary=8, context=8, layers=1, width=8, heads=1)
    recipe = PretrainRecipe(
        shards="s", image_tokenizer="i", text_tokenizer="t", model=model, steps=1, batch=1,
        schedule=Schedule(peak=1.0),
    )  # fmt: skip
    assert recipe.optimizer.betas == (0.9, 0.95)
    assert recipe.rows.forms == {"pair": 1.0}
    assert recipe.mask.spans_mean == 1.0
