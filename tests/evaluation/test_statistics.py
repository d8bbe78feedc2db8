"""Intervals cover, tests are exact where they say so, and what a sample cannot resolve is not claimed."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from latentwire.evaluation.combinations import PairedArms
from latentwire.evaluation.gates import Gate, hold
from latentwire.evaluation.group_intervals import Table, interval
from latentwire.evaluation.outcomes import Outcome
from latentwire.evaluation.significance import holm, sign_flip
from latentwire.evaluation.statistics import Comparison, Estimate, compare, estimate, members


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
        found = estimate(outcomes(scores, group))
        covered += found.low <= 0.6 <= found.high
        alone = estimate(outcomes(scores))
        naive += alone.low <= 0.6 <= alone.high
    assert 0.912 <= covered / 300 <= 0.988
    assert naive / 300 < 0.85


def test_the_interval_of_singletons_agrees_with_scipys_percentile_bootstrap():
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
    for _ in range(200):
        counts = (rng.random((60, 3)) < 0.6).astype(float)
        counts = counts[counts.sum(1) > 0]
        latent = 0.8 * rng.normal(size=(len(counts), 1)) + 0.6 * rng.normal(size=counts.shape)
        sums = counts * (latent < stats.norm.ppf(truths))
        bounds = np.zeros(3), np.ones(3)
        table = Table(sums=sums, counts=counts, weights=np.full(3, 1 / 3), floors=bounds[0], ceilings=bounds[1])
        found = interval(table)
        covered += found.low <= truths.mean() <= found.high
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
    return compare(outcomes(b, group, arm="b"), outcomes(a, group, arm="a"))


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
    assert str(resolved) == "-0.410 [-0.450, -0.360], p<1e-4, resolved (this sample resolves ≥ 0.030)"
    other = Comparison(0.05, 0.01, 0.09, 0.0123, 0.03, 9, 9)
    assert str(other) == "+0.050 [0.010, 0.090], p=0.012, resolved (this sample resolves ≥ 0.030)"
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


# --- coverage


def grouped(rng, chances, groups, size, correlation):
    """Which of several things each example is, shape (groups, size): those of one group are alike."""
    if size == 1 or correlation == 0:
        return rng.choice(len(chances), (groups, size), p=chances)
    draws = rng.gamma(np.maximum(chances, 1e-9) * (1 / correlation - 1), size=(groups, len(chances)))
    edges = np.cumsum(draws / draws.sum(1, keepdims=True), axis=1)
    return (rng.random((groups, size, 1)) > edges[:, None, :-1]).sum(-1)


def one(sums, counts, floor, ceiling):
    """A table of one task."""
    column = (np.asarray(sums, float)[:, None], np.asarray(counts, float)[:, None])
    bounds = np.array([float(floor)]), np.array([float(ceiling)])
    return Table(sums=column[0], counts=column[1], weights=np.ones(1), floors=bounds[0], ceilings=bounds[1])


def arms_of(sums, size):
    """Arms as sums over groups of `size` examples each."""
    sums = {name: np.asarray(values, float) for name, values in sums.items()}
    stacked = np.stack(list(sums.values()))[:, :, None]
    first = one(stacked[0, :, 0], np.full(stacked.shape[1], size), 0, 1)
    shape = (len(sums), 1)
    return PairedArms(tuple(sums), stacked, np.zeros(shape), np.ones(shape), first)


def share_covered(rng, p, groups, size, correlation, samples):
    hits = 0
    for _ in range(samples):
        right = grouped(rng, [1 - p, p], groups, size, correlation)
        found = interval(one(right.sum(1), np.full(groups, size), 0, 1))
        assert found.low < found.high
        hits += found.low <= p <= found.high
    return hits / samples


def difference_covered(rng, wins, losses, groups, size, correlation, samples):
    hits = 0
    for _ in range(samples):
        outcome = grouped(rng, [1 - wins - losses, wins, losses], groups, size, correlation)
        found = interval(one(((outcome == 1) * 1.0 - (outcome == 2)).sum(1), np.full(groups, size), -1, 1))
        assert found.low < found.high
        hits += found.low <= wins - losses <= found.high
    return hits / samples


def ratio_covered(rng, both, only_b, groups, size, samples):
    """x is right only where b is: the true ratio is both / (both + only_b)."""
    hits = defined = 0
    for _ in range(samples):
        outcome = grouped(rng, [1 - both - only_b, both, only_b], groups, size, 0.3)
        arms = arms_of({"x": (outcome == 1).sum(1), "b": (outcome > 0).sum(1)}, size)
        found = arms.ratio({"x": 1}, {"b": 1})
        if found.value is not None:
            low = -math.inf if found.low is None else found.low
            high = math.inf if found.high is None else found.high
            assert low < high
            defined += 1
            hits += low <= both / (both + only_b) <= high
    return hits / max(defined, 1)


SAMPLES = 1500
LOWEST = 0.93 - 2.6 * math.sqrt(0.05 * 0.95 / SAMPLES)  # what 93 % may show in so many samples


def highest(events):
    """98 %; more where few differing groups are expected, for their number is whole."""
    return 0.98 + 2.6 * math.sqrt(0.02 * 0.98 / SAMPLES) if events >= 15 else 1.0


@pytest.mark.sweep
@pytest.mark.parametrize("n", [20, 50, 100, 200, 500])
@pytest.mark.parametrize(("size", "correlation"), [(1, 0.0), (5, 0.0), (5, 0.3)])
def test_intervals_of_shares_cover_the_truth_in_93_to_98_percent_of_samples(n, size, correlation):
    rng = np.random.default_rng(n)
    for p in (0.01, 0.03, 0.06, 0.1, 0.3, 0.5, 0.9, 0.97, 0.99):
        covered = share_covered(rng, p, n // size, size, correlation, SAMPLES)
        assert LOWEST <= covered <= highest(min(p, 1 - p) * n / size), (p, covered)


@pytest.mark.sweep
@pytest.mark.parametrize("n", [20, 50, 100, 200, 500])
@pytest.mark.parametrize(("size", "correlation"), [(1, 0.0), (5, 0.0), (5, 0.3)])
def test_intervals_of_differences_cover_the_truth_in_93_to_98_percent_of_samples(n, size, correlation):
    rng = np.random.default_rng(n)
    for wins, losses in ((0, 0), (0.01, 0.01), (0.03, 0), (0.06, 0.06), (0.2, 0.05), (0.3, 0.3), (0.9, 0.05)):
        covered = difference_covered(rng, wins, losses, n // size, size, correlation, SAMPLES)
        events = min(wins, losses) * n / size
        assert LOWEST <= covered <= highest(events), (wins, losses, covered)


@pytest.mark.sweep
@pytest.mark.parametrize(("n", "size"), [(20, 1), (100, 1), (100, 5), (500, 1), (500, 5)])
def test_intervals_of_ratios_cover_the_truth_in_at_least_93_percent_of_samples(n, size):
    rng = np.random.default_rng(n)
    samples = 300
    for both, only_b in ((0.5, 0.01), (0.5, 0.1), (0.1, 0.5), (0.01, 0.8), (0.45, 0.45)):
        covered = ratio_covered(rng, both, only_b, n // size, size, samples)
        assert covered >= 0.93 - 2.6 * math.sqrt(0.05 * 0.95 / samples), (both, only_b, covered)


@pytest.mark.parametrize(("right", "n"), [(0, 200), (1, 200), (3, 50), (7, 20), (499, 500)])
def test_a_share_of_independent_examples_has_clopper_and_pearsons_interval(right, n):
    found = estimate(outcomes([1] * right + [0] * (n - right)))
    exact = stats.binomtest(right, n).proportion_ci(method="exact")
    assert (found.low, found.high) == (pytest.approx(exact.low), pytest.approx(exact.high))


def test_rare_answers_are_covered_where_a_bootstrap_missed_one_sample_in_seven():
    """50 examples, 6 % right: the percentile bootstrap covered 86 % of samples."""
    assert share_covered(np.random.default_rng(0), 0.06, 50, 1, 0.0, 400) >= 0.93


def test_one_answer_that_differs_does_not_make_the_others_certain():
    """199 ties and one win: the interval reaches further up than that of 200 ties, and no less far down."""
    ties = compare(outcomes([1, 0] * 100, arm="a"), outcomes([1, 0] * 100, arm="b"))
    one_win = compare(outcomes([1, 1] + [1, 0] * 99, arm="a"), outcomes([1, 0] * 100, arm="b"))
    assert one_win.high > ties.high
    assert one_win.low < -0.01 < 0.01 < ties.high


@pytest.mark.parametrize(("right", "n"), [(5, 10), (10, 10), (1, 10), (20, 40)])
def test_the_ratio_of_identical_arms_is_known_only_as_far_as_the_sample_goes(right, n):
    scores = np.array([1.0] * right + [0.0] * (n - right))
    arms = arms_of({"x": scores, "b": scores}, 1)
    found = arms.ratio({"x": 1}, {"b": 1})
    if found.value is None:
        assert right == 1, "one right of ten is not resolved above nothing"
        return
    assert found.value == 1
    assert found.low <= 0.99
    assert found.high is None or found.high >= 1.01


def test_retention_of_nothing_has_the_width_of_the_score_it_is_made_of():
    arms = arms_of({"x": np.zeros(300), "b": np.repeat([1.0, 0.0], [240, 60])}, 1)
    score, ratio = arms.linear({"x": 1}), arms.ratio({"x": 1}, {"b": 1})
    assert (ratio.value, ratio.low) == (0, pytest.approx(0, abs=0.02))
    assert ratio.high == pytest.approx(score.high / 0.8, rel=0.1)


def test_a_gate_is_held_by_the_bound_of_few_events():
    """One right of 600 has an upper bound of 0.0093: a gate at 0.008 does not hold, one at 0.01 does."""
    rare = outcomes([1] + [0] * 599)
    assert not hold(Gate.parse("acc <= 0.008"), rare).held
    assert hold(Gate.parse("acc <= 0.01"), rare).held


def test_a_metric_without_bounds_that_never_differs_is_not_known_exactly():
    same = compare(outcomes([2.0] * 50, metric="nll", arm="a"), outcomes([2.0] * 50, metric="nll", arm="b"))
    assert (same.low, same.high) == (-math.inf, math.inf)
    assert not same.equal
    assert not same.resolved
