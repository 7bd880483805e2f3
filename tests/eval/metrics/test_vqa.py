"""Answers against people's, by hand: each case names the rule of the official code it tries."""

import pytest

from eval.metrics.vqa import COUNTINGS, accuracies, answer_values, normal, same, vizwiz, vqa_v2

OTHERS = ["blue", "green", "brown", "pink", "grey", "black", "white", "gold", "teal", "beige"]


def people(*answers: str) -> list[str]:
    """Ten people: these answers, then colours that nobody else names."""
    return [*answers, *OTHERS[len(answers) :]]


# One who agrees: left out himself, no other does, 0; for each of nine others he is one of three.
# So 9 x 1/3 / 10 = 0.3; two give (2 x 1/3 + 8 x 2/3) / 10 = 0.6; three (3 x 2/3 + 7) / 10 = 0.9.
@pytest.mark.parametrize(
    ("said", "answers", "right"),
    [
        ("red", people(), 0.0),  # nobody said it
        ("red", people("red"), 0.3),  # leave one out: one of ten
        ("red", people("red", "red"), 0.6),  # two of ten
        ("red", people("red", "red", "red"), 0.9),  # three of ten
        ("red", people(*["red"] * 4), 1.0),  # four: three are left whoever is left out
        ("red", ["red"] * 10, 1.0),  # never more than 1
        ("Red", people("red"), 0.3),  # capitals
        ("red", people("RED", "Red"), 0.6),  # people's too
        (" red\tfox\n", people("red fox"), 0.3),  # a tab is a space, ends are cut
        ("red\nfox", people("red   fox"), 0.3),  # so is a new line; many spaces are one
        ("three", people("3", "three"), 0.6),  # number words are digits
        ("none", people("0", "zero", "none"), 0.9),  # and "none" is 0
        ("eleven", people("11"), 0.0),  # ten is the last of them
        ("the red fox", people("a red fox", "red fox", "an red fox"), 0.9),  # articles
        ("dont", people("don't"), 0.3),  # an apostrophe is put where it belongs
        ("yall'd've", people("y'all'd've"), 0.3),  # where one of several is missing
        ("youdve", people("you'd've"), 0.0),  # not where two are
        ("somebody'd", people("somebodyd"), 0.3),  # the official table's slip
        ("girls", people("girl's"), 0.0),  # no contraction: an apostrophe stays
        ("2:50", people("250"), 0.0),  # and so does a colon
        ("1,000", people("1000"), 0.3),  # a comma between digits goes
        ("1,000 red-fox", people("1000 redfox"), 0.3),  # and then so does every mark
        ("red-fox", people("red fox"), 0.3),  # else a mark is a space
        ("red, fox", people("red fox"), 0.3),  # beside a space it goes
        ("a-b, c-d", people("b cd"), 0.0),  # that is asked for each mark by itself: "b c d"
        ("x-y -z", people("xy z"), 0.3),  # but wherever in the text it stands
        ("{red}!", people("red"), 0.3),  # braces and exclamation marks are marks
        ("red.", people("red"), 0.3),  # a point goes
        ("3.5", people("3.5"), 0.3),  # not before a digit
        (".5", people("5"), 0.0),  # nor where nothing stands before it
        ("3.", people("3"), 0.3),  # nor does a digit before it keep it
        ("red" + "." * 32, people("red"), 0.3),  # up to 32 points go
        ("red" + "." * 33, people("red"), 0.0),  # and the rest stays
        ("Red", ["red"] * 10, 0.0),  # all say the same: nothing is normalised
        ("a cat.", ["a cat."] * 10, 1.0),  # on neither side
        ("cat\n", [" cat"] * 10, 1.0),  # except for space at the ends
    ],
)
def test_accuracy_by_hand(said: str, answers: list[str], right: float) -> None:
    assert vqa_v2(said, answers) == pytest.approx(right)


def test_a_word_is_a_number_before_it_is_an_article() -> None:
    assert normal("A one, the TEN") == "1 10"


def test_every_contraction_but_one_ends_as_itself() -> None:
    for word in ("he'd've", "'ow's'at", "ma'am", "o'clock", "y'all'd've", "'twas"):
        assert normal(word) == word
        for place, letter in enumerate(word):
            if letter == "'":
                assert normal(word[:place] + word[place + 1 :]) == word


def test_vizwiz_leaves_peoples_words_as_they_are() -> None:
    assert vizwiz("Unanswerable.", people(*["unanswerable"] * 4)) == 1
    assert vizwiz("the night time", people("night time", "Night time")) == pytest.approx(0.3)
    # VQA's code would normalise neither
    assert vizwiz("Yes", ["yes"] * 10) == 1
    assert vqa_v2("Yes", ["yes"] * 10) == 0


def test_one_answer_is_right_or_wrong() -> None:
    assert same("The dog.", ["dog"]) == 1
    assert same("dogs", ["dog"]) == 0
    assert vqa_v2("dog", ["dog"]) == 0  # which is why the corpus is counted in a way of its own


def test_figures_are_means_of_their_kind() -> None:
    said, kinds = ["red", "two", "no", "cat"], ["colour", "number", "yes/no", "colour"]
    right = accuracies(said, [["red"], ["2"], ["yes"], ["dog"]], "corpus")
    assert right == [1, 1, 0, 0]
    values = answer_values(right, kinds)
    assert {name: value.value for name, value in values.items()} == {
        "accuracy, colour": 0.5,
        "accuracy, number": 1,
        "accuracy, yes/no": 0,
        "accuracy, all": 0.5,
    }
    assert set(COUNTINGS) == {"vqa", "ok-vqa", "vizwiz", "corpus"}
