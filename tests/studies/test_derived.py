"""Claims about damage, retention, gain, recovery, side effect and interaction: equal to hand computation."""

from __future__ import annotations

from dataclasses import replace

import pytest

from latentwire.evaluation.outcomes import Outcome
from latentwire.studies.claims import After, Effects
from latentwire.studies.derived import FORMULAS, Derived, derive

EFFECTS = Effects(
    baseline="baseline/text",
    ablated="ablated/text",
    after={"ft": After(ablated="ablated_after/text", plain="plain_after/text")},
)
CROSSED = Effects(
    baseline="baseline/text",
    ablated="ablated/text",
    after={
        "ft": After(ablated="ablated_after/text", plain="plain_after/text"),
        "causal_ft": After(ablated="ablated_causal/text", plain="plain_causal/text"),
    },
    crossed={"ft": "causal_ft"},
)
N = 400


def readings(**shares: float) -> dict[str, list[Outcome]]:
    """Readings with these shares of right answers on one task, `stage` or `stage__arm`."""
    found = {}
    for name, share in shares.items():
        stage, _, arm = name.partition("__")
        right = [at < round(share * N) for at in range(N)]
        arm = arm or "text"
        found[f"{stage}/{arm}"] = [
            Outcome(task="t", arm=arm, id=f"{at}", group=f"{at}", prediction="", metrics={"acc": float(r)})
            for at, r in enumerate(right)
        ]
    return found


SHARES = {"baseline": 0.85, "ablated": 0.45, "ablated_after": 0.8, "plain_after": 0.75}


def of(found: list[Derived], effect: str, reading: str) -> Derived:
    (one,) = [each for each in found if (each.effect, each.of) == (effect, reading)]
    return one


def test_every_effect_equals_hand_computation_raw_and_above_the_floor() -> None:
    b, a, x, p, f = 0.85, 0.45, 0.8, 0.75, 0.25
    found = derive(EFFECTS, ["t"], readings(**SHARES), {"t": {"chance": f, "type_floor": 0.2}})
    expected = {
        ("damage", "ablated/text"): (b - a, (b - a) / (b - f)),
        ("retention", "ablated/text"): (a / b, (a - f) / (b - f)),
        ("retention", "ablated_after/text"): (x / b, (x - f) / (b - f)),
        ("gain", "ablated_after/text"): (x - a, (x - a) / (b - f)),
        ("recovery", "ablated_after/text"): ((x - a) / (b - a), (x - a) / (b - a)),
        ("recovery_of_plain", "ablated_after/text"): ((x - a) / (p - a), (x - a) / (p - a)),
        ("side_effect", "plain_after/text"): (p - b, (p - b) / (b - f)),
        ("interaction", "ablated_after/text"): ((x - a) - (p - b), ((x - a) - (p - b)) / (b - f)),
    }
    assert {(each.effect, each.of) for each in found} == set(expected) == set(EFFECTS.derived())
    for each in found:
        raw, above = expected[each.effect, each.of]
        assert each.raw.value == pytest.approx(raw), each.effect
        assert each.above_floor.value == pytest.approx(above), each.effect
        assert (each.floor, each.floor_is, each.n, each.at_floor) == (f, "chance", N, False)
        for number in (each.raw, each.above_floor):
            assert number.low is not None
            assert number.value is not None
            assert number.high is not None
            assert number.low < number.value < number.high
    assert {each.effect for each in found} == FORMULAS.keys() - {"mask_interaction"}


def test_the_two_by_two_of_masks_has_an_interaction() -> None:
    """What finetuning under the mask adds to reading under the mask, beyond what it adds to plain reading."""
    b, f, (x, p), (y, q) = 0.85, 0.25, (0.8, 0.75), (0.5, 0.7)
    shares = {**SHARES, "ablated_causal": y, "plain_causal": q}
    found = derive(CROSSED, ["t"], readings(**shares), {"t": {"chance": f}})
    assert {(each.effect, each.of) for each in found} == set(CROSSED.derived())
    interaction = of(found, "mask_interaction", "ablated_after/text")
    assert interaction.raw.value == pytest.approx((x - p) - (y - q))
    assert interaction.above_floor.value == pytest.approx(((x - p) - (y - q)) / (b - f))
    assert interaction.raw.low is not None
    assert interaction.raw.high is not None
    assert interaction.raw.low < (x - p) - (y - q) < interaction.raw.high


def test_the_interaction_of_masks_is_over_seeds_and_items() -> None:
    """Its interval is wider where seeds differ, although every seed's mean over items is as before."""

    def seeds(apart: float) -> dict[str, dict[str, list[Outcome]]]:
        made: dict[str, dict[str, list[Outcome]]] = {}
        for seed, moved in (("0", -apart), ("1", 0.0), ("2", apart)):
            shares = {**SHARES, "ablated_after": 0.7 + moved, "ablated_causal": 0.5, "plain_causal": 0.7}
            for name, outcomes in readings(**shares).items():
                made.setdefault(name, {})[seed] = outcomes
        trained = {
            name: by_seed for name, by_seed in made.items() if name not in ("baseline/text", "ablated/text")
        }
        return {**{name: {"": made[name]["0"]} for name in made}, **trained}

    alike, unlike = (
        of(derive(CROSSED, ["t"], seeds(apart), {}), "mask_interaction", "ablated_after/text").raw
        for apart in (0.0, 0.1)
    )
    assert alike.value == pytest.approx(unlike.value) == pytest.approx(0.15)
    assert alike.low is not None
    assert unlike.low is not None
    assert unlike.low < alike.low - 0.05


def test_an_interaction_of_masks_needs_two_finetunings_that_are_read() -> None:
    fields = CROSSED.model_dump()
    for crossed, said in (({"ft": "causal_f"}, "nearest: causal_ft"), ({"ft": "ft"}, "the same finetuning")):
        with pytest.raises(ValueError, match=said):
            Effects(**{**fields, "crossed": crossed})


def test_effects_of_a_task_can_be_of_another_metric() -> None:
    """F1 in place of exact match: a floor that is known of the primary metric is not one of this."""
    exact = {"baseline": 0.5, "ablated": 0.1, "baseline__none": 0.05}
    f1 = readings(baseline=0.75, ablated=0.3, baseline__none=0.15)
    both = {
        name: [
            replace(o, metrics={"em": o.metrics["acc"], "f1": f.metrics["acc"]})
            for o, f in zip(found, f1[name], strict=True)
        ]
        for name, found in readings(**exact).items()
    }
    effects = Effects(baseline="baseline/text", ablated="ablated/text", metrics={"t": "f1"})
    damage = of(derive(effects, ["t"], both, {"t": {"type_floor": 0.4}}), "damage", "ablated/text")
    assert damage.raw.value == pytest.approx(0.45)
    assert damage.above_floor.value == pytest.approx(0.45 / 0.6)
    assert damage.floor_is == "baseline/none"


def test_the_earlier_studys_retention_of_a_half_is_at_floor() -> None:
    """0.512 of a baseline of 0.717 is 0.017 above a chance of 0.35, which 400 examples do not resolve."""
    found = derive(EFFECTS, ["t"], readings(baseline=0.7175, ablated=0.3675), {"t": {"chance": 0.35}})
    retention = of(found, "retention", "ablated/text")
    assert retention.raw.value == pytest.approx(0.512, abs=1e-3)
    assert retention.above_floor.value == pytest.approx(0.0175 / 0.3675)
    assert retention.at_floor


def test_the_floor_is_the_highest_of_chance_type_and_what_either_model_guesses() -> None:
    shares = {**SHARES, "baseline__none": 0.3, "ablated_after__none": 0.4, "ablated__none": 0.1}
    found = derive(EFFECTS, ["t"], readings(**shares), {"t": {"chance": 0.25, "type_floor": 0.28}})
    after = of(found, "retention", "ablated_after/text")
    assert (after.floor, after.floor_is) == (pytest.approx(0.4), "ablated_after/none")
    assert after.above_floor.value == pytest.approx((0.8 - 0.4) / (0.85 - 0.4))
    before = of(found, "retention", "ablated/text")
    assert (before.floor, before.floor_is) == (pytest.approx(0.3), "baseline/none")


def test_recovery_starts_at_the_floor_where_the_mask_took_more_than_the_context_gives() -> None:
    found = derive(EFFECTS, ["t"], readings(**{**SHARES, "ablated": 0.05}), {"t": {"chance": 0.25}})
    recovery = of(found, "recovery", "ablated_after/text")
    assert recovery.raw.value == pytest.approx((0.8 - 0.05) / (0.85 - 0.05))
    assert recovery.above_floor.value == pytest.approx((0.8 - 0.25) / (0.85 - 0.25))
    assert of(found, "damage", "ablated/text").at_floor


def test_what_cannot_be_divided_is_undefined_and_not_a_number() -> None:
    no_damage = derive(EFFECTS, ["t"], readings(**{**SHARES, "ablated": 0.85}), {"t": {"chance": 0.25}})
    assert of(no_damage, "recovery", "ablated_after/text").raw.value is None
    at_floor = derive(EFFECTS, ["t"], readings(**{**SHARES, "baseline": 0.26}), {"t": {"chance": 0.25}})
    assert of(at_floor, "retention", "ablated/text").above_floor.value is None
    assert of(at_floor, "retention", "ablated/text").raw.value is not None


def test_readings_without_an_example_in_common_have_no_effects() -> None:
    apart = readings(**SHARES)
    apart["ablated/text"] = [replace(each, id=f"other {each.id}") for each in apart["ablated/text"]]
    assert derive(EFFECTS, ["t"], apart, {}) == []


def test_without_a_known_floor_above_floor_is_raw() -> None:
    found = of(derive(EFFECTS, ["t"], readings(**SHARES), {}), "retention", "ablated/text")
    assert found.raw.value == found.above_floor.value
    assert (found.floor, found.floor_is) == (0.0, "none known")


def test_effects_appear_as_soon_as_their_readings_are_there() -> None:
    found = derive(EFFECTS, ["t"], readings(baseline=0.9, ablated=0.5), {})
    assert [each.effect for each in found] == ["damage", "retention"]
    assert derive(EFFECTS, ["t"], readings(ablated=0.5), {}) == []


def test_the_floor_of_a_macro_is_the_mean_of_its_tasks_floors() -> None:
    two = {}
    for name, outcomes in readings(**SHARES).items():
        two[name] = [*outcomes, *(replace(outcome, task="u") for outcome in outcomes)]
    floors = {"t": {"chance": 0.25}, "u": {"chance": 0.5}}
    found = of(derive(EFFECTS, ["macro"], two, floors), "damage", "ablated/text")
    assert found.floor == pytest.approx(0.375)
    assert found.above_floor.value == pytest.approx(0.4 / (0.85 - 0.375))
