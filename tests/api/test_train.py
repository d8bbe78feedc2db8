"""`latentwire.train` trains as a study's wire stage does, and goes on where it stopped."""

import pytest

import latentwire as lw
from tests.support.models import tiny_lm

SMALL = {
    "steps": 2,
    "passages": 2,
    "contexts": 4,
    "questions": 2,
    "eval_steps": 1,
    "eval_samples": 2,
    "samples": 1,
    "warmup_steps": 0,
    "data": {"kind": "world", "tiers": ["one_hop"]},
}
WIRE = {
    "source": "tiny",
    "encoder": {"kind": "self", "rank": 2},
    "adapters": {"tiny": {"kind": "native"}},
}


def lm():
    model = tiny_lm(max_position_embeddings=1024)
    model.name = "tiny"
    return model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return lw.train(tmp_path_factory.mktemp("wires") / "one", WIRE, models=[lm()], log=lambda line: None, **SMALL)


def test_a_trained_wire_is_read_by_its_reader(trained):
    assert trained.training.steps == 2
    memory = lw.compress(lm(), "Ada lives in Rome.", trained.wire)
    assert memory.latents
    assert isinstance(memory.ask("Where does Ada live?", max_new_tokens=3), str)


def test_the_same_call_again_trains_nothing_more(trained):
    weights = trained.folder / "checkpoints" / "final" / "wire.safetensors"
    before = weights.read_bytes()
    again = lw.train(trained.folder, WIRE, models=[lm()], log=lambda line: None, **SMALL)
    assert again.training.best_loss == trained.training.best_loss
    assert weights.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"steps": 3}, "holds a training with other settings"),
        ({"stepz": 3}, "stepz: found an unknown setting, expected one of .* \\(nearest: steps\\)"),
        ({"steps": 0}, "steps: found 0; input should be greater than or equal to 1"),
        ({"data": {"kind": "wrld"}}, "data"),
    ],
)
def test_wrong_settings_are_told_in_one_sentence(trained, changes, expected):
    with pytest.raises(lw.UserError, match=expected):
        lw.train(trained.folder, WIRE, models=[lm()], **{**SMALL, **changes})


def test_settings_without_steps_are_refused(tmp_path):
    with pytest.raises(lw.UserError, match="steps: found nothing, expected a value"):
        lw.train(tmp_path / "new")


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(lw.UserError, match="holds other files"):
        lw.train(tmp_path, WIRE, models=[lm()], **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
