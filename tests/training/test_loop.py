"""A finetuning is exact to resume, keeps its best checkpoint, and refuses to learn its own labels."""

import json

import pytest
import torch
from safetensors.torch import load_file

from latentwire import LM
from latentwire.errors import UserError
from latentwire.lm.loading.lora import Lora
from latentwire.lm.masks import attention
from latentwire.training import checkpoints, loop
from latentwire.training.data.world import WorldData
from latentwire.training.finetuning.checks import check
from latentwire.training.finetuning.finetune import finetune
from latentwire.training.finetuning.finetuning_config import Finetuning
from latentwire.training.finetuning.row_audit import audit_rows
from latentwire.training.loop_config import Stopping
from latentwire.training.not_finite import NotFinite
from latentwire.training.schedules import learning_rate_share
from latentwire.training.stopping import Judge, Leak
from tests.support.killing import killed_after
from tests.support.models import tiny_lm
from tests.training.test_packing import collate, documents

SMALL = {
    "wire": "text,mask=prefix",
    "data": WorldData(tasks=("one_hop",)),
    "steps": 6,
    "rows": 2,
    "row_tokens": 600,
    "train_samples": 12,
    "eval_samples": 4,
    "eval_steps": 2,
    "log_steps": 1,
    "samples": 0,
    "learning_rate": 1e-3,
}


def start():
    return tiny_lm(max_position_embeddings=1024)


def run(folder, lm=None, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    said = []
    found = finetune(lm or start(), Finetuning(**{**SMALL, **changes}), folder, log=said.append)
    return found, said


def weights_of(folder, name="final"):
    return load_file(folder / "checkpoints" / name / "model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finetuning that nothing interrupted: its folder, and what it came to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run(folder)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"samples": 1},
        {"lora": Lora(rank=2, dropout=0.1), "wire": "text"},
        {"optimizer": "adafactor"},
        {"accumulation": 2, "schedule": "linear", "warmup_steps": 2},
    ],
    ids=["full", "lora", "adafactor", "accumulated"],
)
def test_an_interrupted_finetuning_goes_on_exactly_where_it_stopped(tmp_path, changes):
    run(tmp_path / "whole", **changes)
    with killed_after(5):
        run(tmp_path / "parts", **changes)
    _, said = run(tmp_path / "parts", **changes)
    assert any("resumed at step 4" in line for line in said)
    for name in ("final", "best"):
        whole, parts = weights_of(tmp_path / "whole", name), weights_of(tmp_path / "parts", name)
        assert all(torch.equal(whole[key], parts[key]) for key in whole)
    lines = [
        [
            {k: v for k, v in json.loads(line).items() if k not in ("seconds", "eval_seconds", "memory_gib")}
            for line in (tmp_path / name / "diagnostics.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "parts")
    ]
    assert lines[0] == lines[1]


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 4])
@pytest.mark.parametrize("name", [".best", "last"])
def test_a_kill_between_two_snapshots_changes_nothing(tmp_path, monkeypatch, whole, step, name):
    """The best weights and the state that speaks of them are two files: whichever is first, they must agree."""
    folder, expected = whole

    class Killed(BaseException):
        pass

    def die(self, which, honest=loop.Training._save, **options):
        honest(self, which, **options)
        if (self.done, which) == (step, name):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_save", die)
        with pytest.raises(Killed):
            run(tmp_path / "parts")
    parts, _ = run(tmp_path / "parts")
    assert (parts.best_step, parts.best_loss) == (expected.best_step, expected.best_loss)
    assert (parts.peak_step, parts.peak_accuracy) == (expected.peak_step, expected.peak_accuracy)
    one, two = weights_of(folder, "best"), weights_of(tmp_path / "parts", "best")
    assert all(torch.equal(one[key], two[key]) for key in one)
    steps = [json.loads(line) for line in (tmp_path / "parts" / "diagnostics.jsonl").read_text().splitlines()]
    evaluated = [line["step"] for line in steps if "eval_loss" in line]
    assert sorted(set(evaluated)) == [0, 2, 4, 6]


def test_a_finished_finetuning_is_not_run_again(tmp_path):
    first, _ = run(tmp_path / "run")
    before = (tmp_path / "run" / "diagnostics.jsonl").read_text()
    lm = start()
    second, _ = run(tmp_path / "run", lm)
    assert (tmp_path / "run" / "diagnostics.jsonl").read_text() == before
    assert first == second
    best = weights_of(tmp_path / "run", "best")
    assert all(torch.equal(best[name], tensor) for name, tensor in lm.model.state_dict().items() if name in best)


def test_the_model_ends_as_its_best_checkpoint_and_loads_from_it(tmp_path):
    lm = start()
    found, _ = run(tmp_path / "run", lm)
    losses = {
        line["step"]: line["eval_loss"]
        for line in map(json.loads, (tmp_path / "run" / "diagnostics.jsonl").read_text().splitlines())
        if "eval_loss" in line
    }
    assert found.best_step == min(losses, key=losses.get)
    assert found.best_loss == losses[found.best_step]
    loaded = LM.load(tmp_path / "run" / "checkpoints" / "best")
    for name, tensor in lm.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)


def test_a_run_that_diverges_fails_names_its_batch_and_keeps_its_best_checkpoint_and_last_good_weights(tmp_path):
    lm = start()
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    with pytest.raises(NotFinite, match=r"step \d+.*found .*(nan|inf).*the batch holds world/one_hop") as failure:
        run(tmp_path / "run", lm, learning_rate=1e4, clip=1e9, eval_steps=50, steps=30)
    assert not (tmp_path / "run" / "checkpoints" / "final").exists()
    best = weights_of(tmp_path / "run", "best")
    assert all(torch.equal(tensor, before[name]) for name, tensor in best.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.model.state_dict().items())
    last = checkpoints.find(tmp_path / "run" / "checkpoints" / "last")
    assert last.state["step"] + 1 == int(str(failure.value).split()[1].rstrip(":"))
    assert all(torch.isfinite(tensor).all() for tensor in load_file(last.folder / "trained.safetensors").values())


@pytest.mark.slow
def test_lora_on_the_first_layers_changes_only_them(tmp_path):
    lm = start()
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    run(tmp_path / "run", lm, lora=Lora(rank=2, layers=1), wire="text", learning_rate=1e-2)
    changed = {name for name, tensor in lm.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all("layers.0." in name for name in changed)
    assert set(lm.model.state_dict()) == set(before)


@pytest.mark.slow
def test_activation_checkpointing_and_accumulation_change_no_loss(tmp_path, whole):
    def losses(folder):
        lines = (folder / "diagnostics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)]

    run(tmp_path / "checkpointed", activation_checkpointing=True)
    run(tmp_path / "accumulated", accumulation=2)
    plain = losses(whole[0])
    assert losses(tmp_path / "checkpointed") == pytest.approx(plain, rel=1e-4)
    assert losses(tmp_path / "accumulated") == pytest.approx(plain, rel=1e-4)


def test_both_masks_train_on_the_same_rows(tmp_path):
    causal, _ = run(tmp_path / "causal", wire="text", steps=2)
    prefix, _ = run(tmp_path / "prefix", wire="text,mask=prefix", steps=2)
    assert causal.train_rows_sha256 == prefix.train_rows_sha256
    assert causal.tokens == prefix.tokens


def test_diagnostics_say_what_the_design_promises(tmp_path):
    run(tmp_path / "run", samples=1)
    lines = [json.loads(line) for line in (tmp_path / "run" / "diagnostics.jsonl").read_text().splitlines()]
    logged = next(line for line in lines if "loss" in line)
    assert {
        "step",
        "tokens",
        "seconds",
        "learning_rate",
        "loss",
        "objectives",
        "gradient_norm",
        "objective_gradient_norms",
        "first_token_accuracy",
        "memory_gib",
    } <= set(logged)
    assert set(logged["objective_gradient_norms"]) == {"answer_ce"}
    assert [line["step"] for line in lines if "eval_loss" in line] == [0, 2, 4, 6]
    assert len(list((tmp_path / "run" / "samples").iterdir())) == 4


def test_training_over_a_leaking_wire_is_refused_unless_forced(tmp_path):
    with pytest.raises(UserError, match="copy the label"):
        check(Finetuning(**{**SMALL, "wire": "leaky"}), start())
    _, said = run(tmp_path / "forced", wire="leaky", force_leaky=True, steps=1)
    assert any("as forced" in line for line in said)


def test_a_model_that_leaks_stops_the_stage_before_the_first_step(tmp_path, monkeypatch):
    from latentwire.lm.masks.reading import Reading

    lm = start()
    monkeypatch.setattr(Reading, "visible", lambda self, q, k, *_: torch.ones(1, 1, q, k, dtype=torch.bool))
    with pytest.raises(Leak, match="audit"):
        run(tmp_path / "run", lm)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_rows_whose_documents_see_each_other_are_caught(monkeypatch):
    lm = start()
    rows = collate([documents(3)])
    assert audit_rows(lm, rows) == []
    monkeypatch.setattr("latentwire.training.finetuning.row_audit.Reading", _forget_documents)
    assert any("see each other" in problem for problem in audit_rows(lm, rows))


def _forget_documents(columns, layers=None):
    from dataclasses import replace

    from latentwire.lm.masks.reading import Reading

    positions = torch.arange(columns.width).expand_as(columns.positions)
    return Reading(replace(columns, documents=torch.full_like(columns.documents, -1), positions=positions), layers)


def test_schedules_start_warm_and_end_where_they_say():
    def shares(kind, **o):
        return [learning_rate_share(kind, s, 10, o.get("warmup", 0), o.get("final", 0.1)) for s in range(10)]

    assert shares("constant") == [1.0] * 10
    assert shares("cosine", warmup=2)[:3] == [0.5, 1.0, 1.0]
    assert shares("linear")[5] == pytest.approx(0.1 + 0.9 * 0.5)
    for kind in ("cosine", "linear"):
        assert shares(kind) == sorted(shares(kind), reverse=True)
        assert learning_rate_share(kind, 10, 10, 0, 0.1) == pytest.approx(0.1)


def test_the_kill_criteria_name_their_reason():
    judge = Judge(Stopping(no_signal_steps=3))
    assert [judge.trained(step, 2.0) for step in range(3)][-1] == "no learning signal after 3 steps"
    judge = Judge(Stopping(worse_evaluations=2))
    assert [judge.evaluated(step, loss) for step, loss in enumerate([1.0, 1.1, 1.2])][-1].startswith("evaluation")
    judge = Judge(Stopping(patience=2, min_delta=0.1, min_steps=30))
    assert [judge.evaluated(10 * n, 1.0 - 0.01 * n) for n in range(3)] == [None] * 3
    assert judge.evaluated(30, 0.97).startswith("plateau")
    assert judge.best_step == 30


def test_a_train_loss_that_collapses_implausibly_fast_is_a_suspected_leak():
    judge = Judge(Stopping())
    judge.trained(0, 4.0)
    with pytest.raises(Leak, match="suspected leak"):
        judge.trained(5, 0.01)
    slow = Judge(Stopping())
    slow.trained(0, 4.0)
    assert slow.trained(500, 0.01) is None


def test_settings_refuse_what_they_do_not_know():
    with pytest.raises(ValueError, match="extra"):
        Finetuning(**{**SMALL, "learing_rate": 1.0})
    with pytest.raises(UserError, match="nearest: text"):
        Finetuning(**{**SMALL, "wire": "txt"})


def test_documents_longer_than_a_row_are_left_out_and_said(tmp_path):
    with pytest.raises(UserError, match="row_tokens"):
        run(tmp_path / "none", row_tokens=16)


@pytest.mark.slow
def test_a_finetuning_through_the_split_kernel_is_the_same_one_and_says_so(tmp_path):
    found = {}
    for kernel in ("auto", "split"):
        lm = start()
        _, said = run(tmp_path / kernel, lm, attention=kernel)
        assert [line.partition(", because")[0] for line in said if line.startswith("attention: ")] == [
            f"attention: {'sdpa' if kernel == 'auto' else 'split'}"
        ]
        assert attention.kernel(lm.model) == "sdpa", "the model reads as before once it is trained"
        lines = [json.loads(line) for line in (tmp_path / kernel / "diagnostics.jsonl").read_text().splitlines()]
        found[kernel] = [line.get("loss", line.get("eval_loss")) for line in lines]
    assert found["split"] == pytest.approx(found["auto"], rel=1e-4)


def test_a_kernel_that_cannot_train_here_is_refused(tmp_path):
    with pytest.raises(UserError, match="FlexAttention has no backward pass on a CPU"):
        run(tmp_path / "run", attention="flex")


OBJECTIVES = [
    {"kind": "answer_ce", "weight": 0.5},
    {"kind": "first_tokens", "tokens": 2},
    {"kind": "growing_tokens"},
    {"kind": "distill", "tokens": 3, "top": 20},
    {"kind": "distill_hidden", "layers": [-1], "auto": True},
]


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["full", "lora"])
def test_a_finetuning_takes_every_objective_on_answers_and_resumes_exactly_with_them(tmp_path, lora):
    changes = {"objectives": OBJECTIVES, "lora": lora, "accumulation": 2, "steps": 4}
    run(tmp_path / "whole", **changes)
    with killed_after(3):
        run(tmp_path / "parts", **changes)
    run(tmp_path / "parts", **changes)
    whole, parts = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "diagnostics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if "loss" in line)
    assert set(first["objectives"]) == {objective["kind"] for objective in OBJECTIVES}
    assert first["adapting"]["scales"]["distill_hidden"] > 0


@pytest.mark.slow
def test_the_teacher_of_a_finetuning_is_the_model_as_it_was_reading_causally(tmp_path):
    def distances(name, **changes):
        run(tmp_path / name, objectives=[{"kind": "answer_ce"}, {"kind": "distill"}], steps=3, **changes)
        lines = map(json.loads, (tmp_path / name / "diagnostics.jsonl").read_text().splitlines())
        return [line["objectives"]["distill"] for line in lines if "loss" in line]

    for lora in (None, Lora(rank=2)):
        causal = distances(f"causal-{lora is None}", wire="text", lora=lora, learning_rate=1e-2)
        assert causal[0] == pytest.approx(0, abs=1e-6), "before the first step they are the same model"
        assert causal[2] > 1e-5
        assert distances(f"prefix-{lora is None}", lora=lora)[0] > 1e-5, "the student reads the prompt both ways"


def test_a_model_that_only_distills_itself_under_its_own_mask_does_not_change(tmp_path):
    lm = start()
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    run(tmp_path / "run", lm, wire="text", objectives=[{"kind": "distill"}], learning_rate=1e-6, steps=1)
    for name, tensor in lm.model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "kind", ["contrast", "scale", "align", "manifold", "info_nce", "reconstruct", "gist", "flow"]
)
def test_a_finetuning_refuses_objectives_on_latents_with_what_it_takes(kind):
    with pytest.raises(ValueError, match=f"{kind}.*a finetuning has none; expected answer_ce, first_tokens"):
        Finetuning(**{**SMALL, "objectives": [{"kind": kind}]})


def test_a_layer_to_follow_that_the_model_lacks_is_refused_before_anything_is_trained():
    settings = Finetuning(**{**SMALL, "objectives": [{"kind": "distill_hidden", "layers": [9]}]})
    with pytest.raises(UserError, match="found 9, expected one of"):
        check(settings, start())


@pytest.mark.slow
def test_first_tokens_of_a_packed_step_weigh_as_much_as_all_of_them(tmp_path):
    """Split into passes the loss stays the whole step's: lengths are counted over all of its rows."""

    def losses(name, **changes):
        run(tmp_path / name, objectives=[{"kind": "first_tokens"}], steps=2, rows=3, **changes)
        lines = map(json.loads, (tmp_path / name / "diagnostics.jsonl").read_text().splitlines())
        return [line["loss"] for line in lines if "loss" in line]

    assert losses("passes", accumulation=3) == pytest.approx(losses("whole"), rel=1e-4)
