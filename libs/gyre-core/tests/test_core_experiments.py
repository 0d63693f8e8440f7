"""Assignment by hash: stable, uniform, sticky and independent."""

import pytest
from gyre_core.experiments import Arm, assign, bucket, exploration_order, explores
from hypothesis import given
from hypothesis import strategies as st

names = st.text(max_size=20)
shares = st.floats(0, 1, allow_subnormal=False)
positions = st.floats(0, 1, exclude_max=True)


@given(user=names, salt=names)
def test_buckets_are_stable_and_in_range(user: str, salt: str) -> None:
    """A user's bucket is in [0, 1) and the same at every call."""
    assert 0 <= bucket(user, salt) < 1
    assert bucket(user, salt) == bucket(user, salt)


def test_buckets_do_not_change_between_releases() -> None:
    """The hash is a contract: a new one would move every user to another arm."""
    assert bucket("user-1", "movies-1") == pytest.approx(0.35473405291030924, abs=1e-15)


def test_buckets_are_uniform_and_independent_between_salts() -> None:
    """Each decile holds a tenth of the users, and two salts agree on it only by chance."""
    first = [int(bucket(str(user), "a") * 10) for user in range(20_000)]
    second = [int(bucket(str(user), "b") * 10) for user in range(20_000)]
    assert all(abs(first.count(decile) / 20_000 - 0.1) < 0.01 for decile in range(10))
    assert abs(sum(a == b for a, b in zip(first, second, strict=True)) / 20_000 - 0.1) < 0.01


@given(position=positions, first=shares)
def test_propensity_is_the_share_of_the_arm(position: float, first: float) -> None:
    """Whoever is assigned gets an arm that has a share, and its share is the propensity."""
    arm, propensity = assign([Arm("live", 1 - first, 3), Arm("candidate", first, 3)], position)
    assert propensity == arm.share > 0


@given(position=positions, small=shares, large=shares)
def test_a_growing_arm_keeps_its_users(position: float, small: float, large: float) -> None:
    """Who has the candidate at a small share has it at every larger one."""
    small, large = sorted((small, large))
    before, _ = assign([Arm("live", 1 - small), Arm("candidate", small)], position)
    after, _ = assign([Arm("live", 1 - large), Arm("candidate", large)], position)
    if before.version == "candidate":
        assert after.version == "candidate"


@pytest.mark.parametrize("arms", [[], [Arm("a", 0.5)], [Arm("a", 1.5), Arm("b", -0.5)]])
def test_shares_that_are_no_split_are_refused(arms: list[Arm]) -> None:
    """Shares must be a split of all users."""
    with pytest.raises(ValueError, match="shares"):
        assign(arms, 0.3)


def test_exploration_takes_its_share_of_each_arm() -> None:
    """Two per cent of requests explore, whatever the bucket of the same id."""
    explored = [explores(str(request), 0.02, "a") for request in range(50_000)]
    assert abs(sum(explored) / 50_000 - 0.02) < 0.003
    low = [bucket(str(request), "a") < 0.5 for request, chosen in enumerate(explored) if chosen]
    assert abs(sum(low) / len(low) - 0.5) < 0.08


def test_exploration_orders_are_uniform_and_reproducible() -> None:
    """Each candidate comes first equally often, and a request's order can be computed again."""
    firsts = [exploration_order(str(request), 4, "a")[0] for request in range(8000)]
    assert all(abs(firsts.count(item) / 8000 - 0.25) < 0.02 for item in range(4))
    assert exploration_order("r", 9, "a") == exploration_order("r", 9, "a")
    assert sorted(exploration_order("r", 9, "a")) == list(range(9))
