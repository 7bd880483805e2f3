"""Synonyms of labels from WordNet's files, of a small WordNet of our own."""

from pathlib import Path

import pytest

from tokenizer.errors import UserError
from train.data.wordnet import synonyms

SENSES = [
    ("dog", "domestic_dog"),
    ("andiron", "dog"),
    ("cad", "dog"),
    ("fire_truck", "Fire_Engine"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four senses; `dog` has three of them, in the order of how common they are."""
    licence = "  1 a licence stands in front\n"
    data, places = licence, list[int]()
    for words in SENSES:
        places.append(len(data))
        named = " ".join(f"{word} 0" for word in words)
        data += f"{places[-1]:08d} 05 n {len(words):02x} {named} 000 | a gloss\n"
    index = licence
    for lemma in sorted({word.lower() for words in SENSES for word in words}):
        own = [f"{place:08d}" for place, words in zip(places, SENSES, strict=True)
               if lemma in [word.lower() for word in words]]  # fmt: skip
        index += f"{lemma} n {len(own)} 2 @ ~ {len(own)} 0 {' '.join(own)}  \n"
    (tmp_path / "index.noun").write_text(index)
    (tmp_path / "data.noun").write_text(data)
    return tmp_path


def test_synonyms_are_the_words_of_the_commonest_senses(folder: Path) -> None:
    assert synonyms(folder, ["dog"]) == ["andiron", "dog", "domestic"]  # not the third sense
    assert synonyms(folder, ["Fire truck"]) == ["engine", "fire", "truck"]
    assert synonyms(folder, ["guide dog"]) == synonyms(folder, ["dog"])  # by its last word
    assert synonyms(folder, ["unicorn", ""]) == []


def test_a_folder_without_wordnet_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no WordNet") as refused:
        synonyms(tmp_path, ["dog"])
    assert "\n" not in str(refused.value)
    (tmp_path / "index.noun").write_text("dog n\n")
    (tmp_path / "data.noun").write_text("")
    with pytest.raises(UserError, match="has no WordNet"):
        synonyms(tmp_path, ["dog"])
