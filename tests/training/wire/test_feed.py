"""Steps filled by tokens hold every passage once an epoch, with little padding, as a function of the seed."""

import random

import torch

from latentwire.training.wire.feed import Feed
from latentwire.training.wire.passage import Passage
from latentwire.training.wire.wire_training_config import WireTraining

DEVICES = {"r": torch.device("cpu")}


def passage(number):
    length = random.Random(number).randint(10, 300)
    return Passage(str(number), str(number), {"r": [1] * length}, {"r": [([1] * 8, [2] * 4)] * 3})


PASSAGES = [passage(number) for number in range(500)]


def feed(identity="data", **changes):
    settings = {"steps": 60, "passages": 8, "questions": 2, "step_tokens": 4000, **changes}
    return Feed(WireTraining.model_validate(settings), PASSAGES, DEVICES, identity)


def contexts(feed_, step):
    return [context for part in feed_.parts(step, 0, 1) for context in part.contexts]


def test_every_passage_comes_once_before_any_comes_again():
    made, seen, step = feed(), [], 0
    while len(seen) < len(PASSAGES):
        seen += contexts(made, step)
        step += 1
    assert sorted(seen) == sorted(each.context for each in PASSAGES)


def test_steps_are_filled_up_to_their_tokens_with_little_padding():
    made = feed()
    padded = real = 0
    for step in range(20):
        (part,) = made.parts(step, 0, 1)
        ids = part.text["r"].content
        questions = part.questions["r"].ids
        assert ids.shape[0] * (ids.shape[1] + questions.shape[1]) <= 4000
        padded += ids.numel()
        real += made.tokens(step)
    assert real > 0.8 * padded
    mixed = feed(step_tokens=None, passages=20)
    sizes = [mixed.parts(step, 0, 1)[0].text["r"].content.numel() for step in range(20)]
    assert sum(map(mixed.tokens, range(20))) < 0.7 * sum(sizes)


def uneven(number):
    """A passage whose questions are as long as its text is short, or not."""
    draw = random.Random(number)
    pairs = [([1] * draw.randint(5, 120), [2] * 4) for _ in range(3)]
    return Passage(str(number), str(number), {"r": [1] * draw.randint(10, 300)}, {"r": pairs})


def test_no_step_has_more_columns_than_its_tokens_though_texts_and_questions_differ_in_length():
    settings = WireTraining.model_validate({"steps": 40, "passages": 8, "questions": 2, "step_tokens": 4000})
    made = Feed(settings, [uneven(number) for number in range(500)], DEVICES, "data")
    columns = []
    for step in range(40):
        (part,) = made.parts(step, 0, 1)
        rows, text = part.text["r"].content.shape
        columns.append(rows * (text + part.questions["r"].ids.shape[1]))
    assert max(columns) <= 4000
    assert made.columns <= 4000
    assert sum(columns) > 0.75 * 4000 * 40  # and they are filled


def test_the_order_is_a_function_of_the_seed_and_the_step():
    first, again, other = feed(), feed(), feed(seed=1)
    assert [contexts(first, step) for step in range(5)] == [contexts(again, step) for step in range(5)]
    assert contexts(feed(), 4) == contexts(first, 4)
    assert contexts(other, 0) != contexts(first, 0)


def test_a_split_step_has_the_same_passages_in_more_parts():
    whole, split = feed(), feed()
    assert split.split_further()
    assert sorted(contexts(whole, 3)) == sorted(contexts(split, 3))
    assert len(split.parts(4, 0, 1)) == 2
    while split.split_further():
        pass
    assert all(len(part.contexts) == 1 for part in split.parts(5, 0, 1))


def test_the_digest_follows_data_and_settings():
    digest = feed().sha256
    assert feed().sha256 == digest
    others = [feed("other"), feed(seed=1), feed(step_tokens=300), feed(questions=1), feed(passages=4)]
    assert digest not in {other.sha256 for other in others}
