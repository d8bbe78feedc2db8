"""Arms over several seeds: against SciPy, published examples, and what must hold of any interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from latentwire.evaluation import pooled
from latentwire.evaluation.combinations import PairedArms
from latentwire.evaluation.outcomes import Outcome
from latentwire.evaluation.pooled import PooledArms, compare_pooled, drawn, estimate_pooled
from latentwire.evaluation.resolution import planned, sentences
from latentwire.evaluation.scores import Scores
from latentwire.evaluation.statistics import compare, estimate

# Student's sleep data (Biometrika 1908), as R's `sleep`: hours of sleep gained by ten patients under two drugs.
SLEEP_A = (0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0)
SLEEP_B = (1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4)


def outcomes(
    scores: Sequence[float], metric: str = "exact_match", arm: str = "a", per_group: int = 1
) -> list[Outcome]:
    return [
        Outcome(
            task="t",
            arm=arm,
            id=f"{at}",
            group=f"{at // per_group}",
            prediction="",
            metrics={metric: float(score)},
        )
        for at, score in enumerate(scores)
    ]


def constant(values: Sequence[float]) -> dict[str, list[Outcome]]:
    """Seeds under which every example has the same score: all that varies is the seed. `nll` has no bounds."""
    return {str(seed): outcomes([value] * 8, "nll") for seed, value in enumerate(values)}


def random_arm(share: float, seeds: int, n: int, start: int, groups: int = 1) -> dict[str, list[Outcome]]:
    draws = [np.random.default_rng(start + seed).random(n) < share for seed in range(seeds)]
    return {str(seed): outcomes(right, per_group=groups) for seed, right in enumerate(draws)}


def test_one_seed_is_the_comparison_and_the_estimate_of_a_single_run() -> None:
    a, b = random_arm(0.8, 1, 60, 0)["0"], random_arm(0.5, 1, 60, 1)["0"]
    expected = compare(a, b)
    found = compare_pooled({"": a}, {"7": b})
    assert {name: getattr(found, name) for name in vars(expected)} == vars(expected)
    assert str(found) == str(expected)
    alone = estimate_pooled({"": a})
    assert {name: getattr(alone, name) for name in vars(estimate(a))} == vars(estimate(a))


def test_students_sleep_data_paired_by_seed_has_the_published_interval() -> None:
    """R: t.test(extra ~ group, paired = TRUE) gives -2.4598858 to -0.7001142, p = 0.002833."""
    found = compare_pooled(constant(SLEEP_A), constant(SLEEP_B))
    assert found.difference == pytest.approx(-1.58)
    assert (found.low, found.high) == pytest.approx((-2.4598858, -0.7001142), abs=0.06)
    assert found.p == pytest.approx(0.002833, rel=0.4)
    assert found.paired_seeds


def test_students_sleep_data_with_other_seeds_has_welchs_interval_or_a_little_more() -> None:
    """R: t.test(extra ~ group) gives -3.3654832 to 0.2054832, p = 0.07939; Behrens and Fisher's is wider."""
    other = {f"other {seed}": each for seed, each in constant(SLEEP_B).items()}
    found = compare_pooled(constant(SLEEP_A), other)
    assert not found.paired_seeds
    assert (found.low, found.high) == pytest.approx((-3.3654832, 0.2054832), abs=0.15)
    assert found.p == pytest.approx(0.07939, rel=0.4)
    welch = stats.ttest_ind(SLEEP_A, SLEEP_B, equal_var=False).confidence_interval()
    assert found.high - found.low > 0.98 * (welch.high - welch.low)


def test_unequal_numbers_of_seeds_agree_with_scipy() -> None:
    a, b = SLEEP_A[:3], SLEEP_B[:5]
    found = compare_pooled(constant(a), constant(b))
    welch = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert (found.seeds_a, found.seeds_b) == (3, 5)
    assert found.low == pytest.approx(welch.low, abs=0.35 * (welch.high - welch.low))
    assert found.low <= welch.low + 0.05
    alone = estimate_pooled(constant(b))
    expected = stats.t.interval(0.95, 4, np.mean(b), stats.sem(b))
    assert (alone.low, alone.high) == pytest.approx(expected, abs=0.05 * (expected[1] - expected[0]))
    assert alone.spread == pytest.approx(np.std(b, ddof=1))


def test_draws_over_groups_are_those_of_scipys_bootstrap() -> None:
    scores = np.random.default_rng(3).random(60)
    table = Scores.of(outcomes(scores, "f1")).table(scores, 0.0, 1.0)
    draws = drawn(table.sums[None], table, np.random.default_rng(0))[:, 0]
    theirs = stats.bootstrap(
        (scores,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1)
    )
    assert np.std(draws) == pytest.approx(theirs.standard_error * np.sqrt(60 / 59), rel=0.03)
    low, high = np.quantile(draws, [0.025, 0.975])
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert low == pytest.approx(theirs.confidence_interval.low, abs=0.04 * width)
    assert high == pytest.approx(theirs.confidence_interval.high, abs=0.04 * width)


def test_groups_are_taken_whole() -> None:
    """Five questions of each passage that all turn out alike tell no more than one question of each."""
    alone = random_arm(0.5, 2, 40, 0)
    five = {
        seed: outcomes(np.repeat([o.metrics["exact_match"] for o in each], 5), per_group=5)
        for seed, each in alone.items()
    }
    one, many = estimate_pooled(alone), estimate_pooled(five)
    assert (many.n, many.groups) == (200, 40)
    assert many.high - many.low == pytest.approx(one.high - one.low, rel=0.1)


def test_seeds_that_agree_add_nothing_and_seeds_that_differ_widen_the_interval() -> None:
    a, b = random_arm(0.7, 1, 80, 0)["0"], random_arm(0.5, 1, 80, 1)["0"]
    single = compare(a, b)
    agreeing = compare_pooled(dict.fromkeys("012", a), {"": b})
    assert (agreeing.low, agreeing.high) == pytest.approx((single.low, single.high), abs=0.02)
    assert agreeing.low <= single.low
    shifted = {str(seed): outcomes(np.arange(80) < count) for seed, count in enumerate((30, 50, 70))}
    differing = compare_pooled(shifted, {"": b})
    assert differing.high - differing.low > 1.5 * (single.high - single.low)


def test_the_interval_does_not_shrink_to_a_point_where_everything_agrees() -> None:
    right = {str(seed): outcomes([1.0] * 30) for seed in range(3)}
    alone = estimate_pooled(right)
    assert (alone.low, alone.high) == pytest.approx((stats.beta.ppf(0.025, 30, 1), 1.0))
    same = compare_pooled(right, right)
    assert same.low < 0 < same.high


def test_order_names_and_repetition_change_nothing() -> None:
    a, b = random_arm(0.7, 3, 40, 0), random_arm(0.5, 2, 40, 9)
    found = compare_pooled(a, b)
    assert compare_pooled({seed: each[::-1] for seed, each in a.items()}, b).low == pytest.approx(
        found.low, abs=0.02
    )
    assert compare_pooled(a, b) == found
    back = compare_pooled(b, a)
    assert back.difference == -found.difference
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low), abs=0.02)


def test_other_examples_under_another_seed_are_refused() -> None:
    a = {"0": outcomes([1.0] * 10), "1": outcomes([1.0] * 9)}
    with pytest.raises(ValueError, match="examples are in one arm only"):
        estimate_pooled(a)


def test_a_ratio_over_seeds_that_agree_is_fiellers() -> None:
    over, under = random_arm(0.5, 1, 300, 0)["0"], random_arm(0.8, 1, 300, 1)["0"]
    fieller = PairedArms.of({"x": over, "b": under}).ratio({"x": 1}, {"b": 1})
    agreeing = PooledArms.of({"x": dict.fromkeys("012", over), "b": {"": under}})
    found = agreeing.ratio({"x": 1}, {"b": 1})
    assert found.value == fieller.value
    assert None not in (found.low, found.high, fieller.low, fieller.high)
    assert (found.low, found.high) == pytest.approx((fieller.low, fieller.high), abs=0.02)
    single = PooledArms.of({"x": {"": over}, "b": {"": under}})
    assert single.ratio({"x": 1}, {"b": 1}) == fieller


def test_numerator_and_denominator_of_a_ratio_are_drawn_together() -> None:
    """Where both move alike under every seed, the ratio does not move."""
    scores = np.random.default_rng(0).random(200)
    b = {str(seed): outcomes(np.clip(scores * factor, 0, 1), "f1") for seed, factor in enumerate((0.5, 0.7, 0.9))}
    x = {seed: outcomes([o.metrics["f1"] / 2 for o in each], "f1") for seed, each in b.items()}
    arms = PooledArms.of({"x": x, "b": b})
    ratio, alone = arms.ratio({"x": 1}, {"b": 1}), arms.linear({"b": 1})
    assert ratio.value == pytest.approx(0.5)
    assert None not in (ratio.low, ratio.high, alone.low, alone.high)
    assert ratio.high - ratio.low < 0.1
    assert alone.high - alone.low > 0.4


def test_a_ratio_whose_denominator_may_be_zero_is_undefined() -> None:
    small = {str(seed): outcomes(np.arange(50) < count) for seed, count in enumerate((0, 1, 4))}
    arms = PooledArms.of({"x": small, "b": small, "none": {"": outcomes(np.arange(50) < 1)}})
    assert arms.ratio({"x": 1}, {"b": 1, "none": -1}).value is None


def test_arms_of_different_seeds_have_no_common_combination() -> None:
    with pytest.raises(ValueError, match="expected the same seeds in every arm"):
        PooledArms.of({"x": random_arm(0.5, 2, 10, 0), "y": random_arm(0.5, 3, 10, 5)})


@pytest.mark.parametrize(("n", "points"), [(200, 6.2), (1319, 2.4), (10_570, 0.85)])
def test_what_a_sample_resolves_before_it_is_taken(n: int, points: float) -> None:
    """Half the 95 % interval of a paired difference, where a fifth of the pairs disagree."""
    assert 100 * planned(n).unresolved == pytest.approx(points, abs=0.06)


def test_the_sentence_names_tasks_of_one_size_together_and_what_passages_cost() -> None:
    first, second = sentences([("a", 200, 200), ("b", 200, 200), ("c", 400, 100)])
    assert first.startswith(
        "a, b: 200 questions: differences under 6.2 points will not be resolved; a true difference"
    )
    assert "c: 400 questions: differences under 4.4 points will not be resolved (8.9 where all questions" in second
    with pytest.raises(ValueError, match="expected two questions"):
        planned(1)


def test_the_planned_resolution_is_that_of_a_sample_that_turns_out_so() -> None:
    """40 of 200 pairs disagree, half of them each way: the interval is as wide as was said before."""
    a = outcomes([1.0] * 100 + [1.0] * 20 + [0.0] * 80)
    b = outcomes([1.0] * 80 + [0.0] * 20 + [1.0] * 20 + [1.0] * 0 + [0.0] * 80)
    found = compare(a, b)
    assert found.difference == pytest.approx(0.1, abs=0.11)
    tie = compare(outcomes([1, 0] * 20 + [1] * 160), outcomes([0, 1] * 20 + [1] * 160))
    assert tie.high == pytest.approx(planned(200).unresolved, abs=0.012)


def hidden_studies(studies: int, seeds: tuple[int, int], groups: int, between: float, rng: np.random.Generator):
    """Studies of two arms with a known difference: items and seeds are drawn anew, log-odds add up.

    Yields:
        The true difference of the arms over all items and seeds, and the two arms.
    """
    items, shifts = rng.normal(0, 1.5, 4000), rng.normal(0, between, 400)
    truth = [np.mean(1 / (1 + np.exp(-(items[:, None] + level + shifts)))) for level in (0.6, 0.0)]
    for _ in range(studies):
        item = rng.normal(0, 1.5, groups)
        arms = []
        for count, level in zip(seeds, (0.6, 0.0), strict=True):
            odds = item[:, None] + level + rng.normal(0, between, count)
            right = rng.random(odds.shape) < 1 / (1 + np.exp(-odds))
            arms.append({f"{level}/{seed}": outcomes(right[:, seed]) for seed in range(count)})
        yield truth[0] - truth[1], *arms


def covered(studies: int, seeds: tuple[int, int], groups: int, between: float, start: int) -> float:
    """The share of studies whose interval holds the truth."""
    rng = np.random.default_rng(start)
    hits = [
        (found := compare_pooled(a, b)).low <= truth <= found.high
        for truth, a, b in hidden_studies(studies, seeds, groups, between, rng)
    ]
    return float(np.mean(hits))


def naively_covered(studies: int, seeds: tuple[int, int], groups: int, between: float, start: int) -> float:
    """The same for a bootstrap that takes seeds with replacement as it takes groups."""
    rng = np.random.default_rng(start)
    hits = []
    for truth, a, b in hidden_studies(studies, seeds, groups, between, rng):
        arms = [np.array([[o.metrics["exact_match"] for o in each] for each in arm.values()]) for arm in (a, b)]
        draws = []
        for _ in range(300):
            taken = rng.integers(groups, size=groups)
            means = [arm[rng.integers(len(arm), size=len(arm))][:, taken].mean() for arm in arms]
            draws.append(means[0] - means[1])
        low, high = np.quantile(draws, [0.025, 0.975])
        hits.append(low <= truth <= high)
    return float(np.mean(hits))


def test_intervals_over_three_seeds_hold_the_truth_where_resampled_seeds_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A small part of the sweep below: 50 studies."""
    monkeypatch.setattr(pooled, "DRAWS", 1000)
    assert covered(50, (3, 3), 80, 1.2, 0) >= 0.9
    assert naively_covered(50, (3, 3), 80, 1.2, 0) <= 0.85


@pytest.mark.sweep
@pytest.mark.parametrize("seeds", [(2, 2), (3, 3), (3, 2), (5, 5), (3, 1)])
@pytest.mark.parametrize("groups", [40, 200])
@pytest.mark.parametrize("between", [0.0, 0.3, 0.8])
def test_intervals_over_seeds_hold_the_truth(
    seeds: tuple[int, int], groups: int, between: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """95 % intervals hold the truth in at least 93 % of 600 studies: 0.93 is three standard errors below 0.95 less
    rounding. An arm of one seed has no spread to learn from: its seed must not vary (`between` 0), or it is called
    single-seed.
    """
    if 1 in seeds and between > 0:
        pytest.skip("one seed says nothing of the spread between seeds")
    monkeypatch.setattr(pooled, "DRAWS", 2000)
    assert covered(600, seeds, groups, between, 1) >= 0.925
