"""Intervals cover, tests are exact where they say so, and what a sample cannot resolve is not claimed."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from latentwire.evaluation.outcomes import Outcome
from latentwire.evaluation.resampling import Table, bootstrap, sign_flip
from latentwire.evaluation.statistics import Comparison, Estimate, compare, estimate, holm, members


def outcomes(scores, groups=None, task="one_hop", arm="text", metric="acc") -> list[Outcome]:
    """One outcome per score; singletons if `groups` are not given."""
    groups = range(len(scores)) if groups is None else groups
    return [
        Outcome(task=task, arm=arm, id=str(i), group=str(g), prediction="", metrics={metric: float(score)})
        for i, (score, g) in enumerate(zip(scores, groups, strict=True))
    ]


def clustered(rng, groups: int, correlation: float) -> tuple[np.ndarray, np.ndarray]:
    """Right (1) or wrong (0) at a true rate of 0.6, and the group: 1 to 8 examples share one."""
    sizes = rng.integers(1, 9, groups)
    spread = 1 / correlation - 1
    rates = rng.beta(0.6 * spread, 0.4 * spread, groups)
    group = np.repeat(np.arange(groups), sizes)
    return (rng.random(sizes.sum()) < rates[group]).astype(float), group


# --- estimates


def test_the_interval_covers_the_truth_for_clustered_examples_where_one_over_examples_does_not():
    """300 samples, 40 groups each: coverage within 3 standard errors of 95 %, naive coverage below 85 %."""
    rng = np.random.default_rng(0)
    covered = naive = 0
    for _ in range(300):
        scores, group = clustered(rng, groups=40, correlation=0.3)
        found = estimate(outcomes(scores, group), resamples=400)
        covered += found.low <= 0.6 <= found.high
        alone = estimate(outcomes(scores), resamples=400)
        naive += alone.low <= 0.6 <= alone.high
    assert 0.912 <= covered / 300 <= 0.988
    assert naive / 300 < 0.85


def test_the_interval_of_singletons_is_scipys_percentile_bootstrap():
    scores = np.random.default_rng(1).beta(2, 1, 400)
    found = estimate(outcomes(scores, metric="f1"))
    theirs = stats.bootstrap((scores,), np.mean, method="percentile", rng=np.random.default_rng(2))
    assert found.value == pytest.approx(scores.mean())
    assert found.low == pytest.approx(theirs.confidence_interval.low, abs=0.003)
    assert found.high == pytest.approx(theirs.confidence_interval.high, abs=0.003)


def test_the_value_is_the_mean_over_examples_whatever_the_sizes_of_groups():
    found = estimate(outcomes([1, 1, 1, 0], groups=[0, 0, 0, 1]))
    assert (found.value, found.n, found.groups) == (0.75, 4, 2)


@pytest.mark.parametrize("groups", [1, 5, 300])
def test_all_right_or_all_wrong_gives_the_clopper_pearson_interval_over_groups(groups):
    group = np.repeat(np.arange(groups), 3)  # three examples a group are no more evidence than one
    exact = stats.binomtest(groups, groups).proportion_ci(method="exact")
    right, wrong = (estimate(outcomes(np.full(3 * groups, v), group)) for v in (1, 0))
    assert (right.low, right.high) == (pytest.approx(exact.low), 1)
    assert (wrong.low, wrong.high) == (0, pytest.approx(1 - exact.low))


def test_a_task_without_spread_still_widens_the_interval_of_the_macro():
    mixed = outcomes([0, 1] * 20, task="one_hop")
    perfect = outcomes([1] * 10, groups=range(100, 110), task="later")
    both, half = estimate([*mixed, *perfect]), estimate(mixed)
    alone = (half.value - half.low) / 2  # as if the perfect task were known without error
    missing = (1 - estimate(perfect).low) / 2
    assert both.value - both.low == pytest.approx(math.hypot(alone, missing), rel=0.05)


def test_equal_outcomes_give_equal_numbers_in_any_order():
    scores, group = clustered(np.random.default_rng(3), groups=30, correlation=0.3)
    given = outcomes(scores, group)
    assert estimate(given) == estimate(given) == estimate(given[::-1])


def test_a_metric_without_bounds_is_not_cut_at_one_and_one_group_says_nothing_about_it():
    nll = outcomes(np.random.default_rng(4).gamma(4, 1, 200), metric="nll")
    found = estimate(nll)
    assert 3 < found.low < found.value < found.high < 5
    assert (estimate(nll[:1]).low, estimate(nll[:1]).high) == (-math.inf, math.inf)


@pytest.mark.parametrize("score", [1.5, -0.1, math.nan])
def test_a_score_that_cannot_be_is_refused(score):
    with pytest.raises(ValueError, match=r"expected acc in \[0, 1\]"):
        estimate(outcomes([1, score]))


def test_outcomes_that_are_no_single_arms_are_refused():
    with pytest.raises(ValueError, match="one arm"):
        estimate([*outcomes([1]), *outcomes([1], task="later", arm="deranged")])
    with pytest.raises(ValueError, match="twice"):
        estimate(outcomes([1]) * 2)
    with pytest.raises(ValueError, match="expected f1"):
        estimate(outcomes([1]), metric="f1")
    with pytest.raises(ValueError, match="found none"):
        estimate([])


# --- means over tasks


def test_macro_counts_a_family_once_and_its_tasks_equally():
    one_hop = outcomes([1, 1, 1, 0], task="one_hop")
    city, age = outcomes([1], task="choices/city"), outcomes([0] * 9 + [1], task="choices/age")
    everything = [*one_hop, *city, *age]
    assert estimate(members(everything, "choices")).value == pytest.approx((1 + 0.1) / 2)
    assert estimate(members(everything, "macro")).value == pytest.approx((0.75 + 0.55) / 2)
    assert estimate(members(everything, "one_hop")).value == 0.75
    assert members(everything, "choices/age") == age


def test_macro_takes_the_primary_metric_of_each_task():
    mixed = [*outcomes([1], metric="exact_match"), *outcomes([0], task="choices/city", metric="acc")]
    assert estimate(mixed).value == 0.5


def spread_of_a_macro(shared: bool) -> float:
    """The interval's width for five tasks whose examples are right or wrong passage by passage."""
    right = np.random.default_rng(5).random(100) < 0.6
    parts = [
        outcomes(right, task=f"t{t}", groups=[f"{g if shared else (t, g)}" for g in range(100)]) for t in range(5)
    ]
    found = estimate([o for part in parts for o in part])
    return found.high - found.low


def test_a_group_that_occurs_in_several_tasks_is_resampled_as_one():
    """Five tasks on the same passages are as uncertain as one; on other passages each, √5 less so."""
    one = estimate(outcomes(np.random.default_rng(5).random(100) < 0.6))
    assert spread_of_a_macro(shared=True) == pytest.approx(one.high - one.low, rel=0.08)
    assert spread_of_a_macro(shared=False) == pytest.approx((one.high - one.low) / math.sqrt(5), rel=0.08)


def test_the_macro_covers_the_truth_when_groups_occur_in_some_of_the_tasks():
    rng = np.random.default_rng(6)
    truths = np.array([0.5, 0.8, 0.9])
    covered = 0
    for seed in range(200):
        counts = (rng.random((60, 3)) < 0.6).astype(float)
        counts = counts[counts.sum(1) > 0]
        latent = 0.8 * rng.normal(size=(len(counts), 1)) + 0.6 * rng.normal(size=counts.shape)
        sums = counts * (latent < stats.norm.ppf(truths))
        table = Table(sums=sums, counts=counts, weights=np.full(3, 1 / 3), floor=0, ceiling=1)
        interval = bootstrap(table, seed, 400)
        covered += interval.low <= truths.mean() <= interval.high
    assert 0.904 <= covered / 200 <= 0.996


# --- comparisons


def test_singletons_are_compared_by_mcnemars_exact_test():
    a, b = [1] * 12 + [0] * 3 + [1] * 30, [0] * 12 + [1] * 3 + [1] * 30
    found = compare(outcomes(a, arm="a"), outcomes(b, arm="b"))
    assert found.p == pytest.approx(stats.binomtest(12, 15).pvalue)
    assert found.difference == pytest.approx(9 / 45)
    assert found.resolved
    assert found.low > 0


def test_the_sign_flip_test_is_brute_force_for_few_groups():
    differences = np.array([0.3, -0.1, 0.25, 0.0, 0.4, 0.05, -0.2, 0.15])
    totals = [abs(np.dot(signs, differences)) for signs in itertools.product([1, -1], repeat=8)]
    exact = np.mean(np.array(totals) >= abs(differences.sum()) - 1e-9)
    assert sign_flip(differences, seed=0) == pytest.approx(exact)
    found = compare(
        outcomes(differences.clip(0), arm="a", metric="f1"), outcomes((-differences).clip(0), arm="b", metric="f1")
    )
    assert found.p == pytest.approx(exact)


def test_the_sign_flip_test_draws_for_many_groups_and_agrees_with_mcnemar():
    differences = np.array([1.0] * 30 + [-1.0] * 15 + [0.0] * 55) / 100
    assert sign_flip(differences, seed=0) == pytest.approx(stats.binomtest(30, 45).pvalue, abs=0.005)
    assert sign_flip(np.full(100, 0.01), seed=0) == 1 / 10_001  # a p-value is never 0


def test_examples_of_one_group_are_not_independent_evidence():
    """40 examples in 4 groups, all for a: 4 groups cannot reach 0.05, 40 would reach 1e-11."""
    a, b = np.ones(40), np.zeros(40)
    group = np.repeat(np.arange(4), 10)
    found = compare(outcomes(a, group, arm="a"), outcomes(b, group, arm="b"))
    assert found.p == 2 / 2**4
    assert not found.resolved
    assert found.resolvable == 1
    assert compare(outcomes(a, arm="a"), outcomes(b, arm="b")).p < 1e-10


def test_arms_that_agree_everywhere_are_equal_only_as_far_as_the_groups_can_tell():
    for groups, equal in ((10, False), (500, True)):
        same = compare(outcomes([1, 0] * (groups // 2), arm="a"), outcomes([1, 0] * (groups // 2), arm="b"))
        bound = 1 - 0.025 ** (1 / groups)
        assert (same.difference, same.p, same.resolved, same.equal) == (0, 1, False, equal)
        assert (same.low, same.high) == (pytest.approx(-bound), pytest.approx(bound))
        assert same.resolvable > bound


def test_swapping_the_arms_changes_the_sign_and_nothing_else():
    rng = np.random.default_rng(7)
    scores, group = clustered(rng, groups=30, correlation=0.3)
    a, b = outcomes(scores, group, arm="a"), outcomes(rng.random(len(scores)) < 0.8, group, arm="b")
    ab, ba = compare(a, b), compare(b[::-1], a)
    assert ab.difference != 0
    assert (ba.difference, ba.low, ba.high) == pytest.approx((-ab.difference, -ab.high, -ab.low))
    assert (ba.p, ba.resolvable) == (ab.p, pytest.approx(ab.resolvable))


def test_a_family_is_compared_with_the_weights_of_its_mean():
    """9 wins in a task of 10 and 90 losses in a task of 1000 are a difference of (0.9 − 0.09) / 2."""
    small, large = [1] * 9 + [0], [0] * 90 + [1] * 910
    a = [*outcomes(small, task="choices/a"), *outcomes(large, range(10, 1010), task="choices/b")]
    b = [*outcomes([0] * 10, task="choices/a", arm="b"), *outcomes([1] * 1000, range(10, 1010), "choices/b", "b")]
    found = compare(a, b)
    assert found.difference == pytest.approx(0.405)
    assert found.resolved


def compared(rng, difference: float) -> Comparison:
    """60 groups of 3; b turns `difference` of a's answers right, beside noise of its own."""
    group = np.repeat(np.arange(60), 3)
    rates = rng.beta(1.2, 0.8, 60)[group]
    a = rng.random(180) < rates
    b = np.where(rng.random(180) < 0.2, rng.random(180) < rates, a) | (rng.random(180) < difference / 0.4)
    return compare(outcomes(b, group, arm="b"), outcomes(a, group, arm="a"), resamples=300)


def test_equal_arms_are_seldom_told_apart_and_a_resolvable_difference_mostly():
    rng = np.random.default_rng(8)
    null = [compared(rng, 0.0) for _ in range(150)]
    assert np.mean([found.resolved for found in null]) <= 0.05
    resolvable = float(np.mean([found.resolvable for found in null]))
    assert 0.7 <= np.mean([compared(rng, resolvable).resolved for _ in range(150)]) <= 0.95


def test_arms_with_different_examples_or_groups_are_not_compared():
    with pytest.raises(ValueError, match="1 examples are in one arm only"):
        compare(outcomes([1, 1], arm="a"), outcomes([1], arm="b"))
    with pytest.raises(ValueError, match="different groups"):
        compare(outcomes([1, 1], arm="a"), outcomes([1, 1], groups=[0, 0], arm="b"))


def test_holm_adjusts_stepwise_and_keeps_the_order():
    assert holm([0.04, 0.01, 0.03, 0.9]) == pytest.approx([0.09, 0.04, 0.09, 0.9])
    assert holm([0.6, 0.5]) == [1, 1]
    assert holm([]) == []
    with pytest.raises(ValueError, match="p-values"):
        holm([1.2])


# --- what is printed


def test_every_number_is_printed_with_its_interval_and_what_it_rests_on():
    assert str(Estimate(0.9121, 0.8874, 0.9336, 500, 120)) == "0.912 [0.887, 0.934] n=500"
    resolved = Comparison(-0.41, -0.45, -0.36, 0.00002, 0.03, 500, 500)
    assert str(resolved) == "-0.410 [-0.450, -0.360], p<1e-4, resolved"
    assert str(Comparison(0.05, 0.01, 0.09, 0.0123, 0.03, 9, 9)) == "+0.050 [0.010, 0.090], p=0.012, resolved"
    unresolved = Comparison(-0.0001, -0.01, 0.02, 0.7, 0.03, 500, 500)
    assert str(unresolved) == "+0.000 [-0.010, 0.020], not resolved (this sample resolves ≥ 0.030)"


def test_an_interval_that_excludes_zero_is_not_enough_without_the_test():
    assert not Comparison(0.02, 0.001, 0.04, 0.06, 0.03, 100, 100).resolved
    assert not Comparison(0.02, -0.001, 0.04, 0.04, 0.03, 100, 100).resolved


def test_a_metric_has_one_interval_whether_it_is_named_or_is_the_primary_one():
    """A table prints the primary metric, a JSON file names it: both must say the same."""
    outcomes = [
        Outcome(
            task="towns",
            arm="text",
            id=str(at),
            group=str(at // 3),
            prediction="",
            metrics={"exact_match": float(at % 7 < 4), "f1": 0.5},
        )
        for at in range(90)
    ]
    assert estimate(outcomes) == estimate(outcomes, "exact_match")
