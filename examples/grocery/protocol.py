"""How the grocery example replays The Complete Journey: promotions are what a household saw, its baskets what it chose.

The promotions of the sample are those of two stores, where only 144 of the 75,000 purchases were made. A chain promotes
much the same everywhere, so a product counts as seen in a week when either of the two stores promoted it then: an
assumption, which makes 17,714 purchases those of promoted products. Each is a choice among 100 products that were
promoted in that week and sold in the 60 days before.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

from demo_loop.scenario import OTHERS, Choice, RecentItems, Scenario, split
from grocery.dataset import products, promotions, purchases
from gyre_core.features import UserInteraction
from gyre_core.spec import Duration, load_loop

SPEC_FILE = Path(__file__).with_name("gyre.yaml")
HISTORY_SHARE = 0.7
ACTIVE_S = 60 * 86_400.0
SHOWN, ENOUGH = 8_000, 2_500
_SEED = 2017


def scenario(folder: Path) -> Scenario:
    """The scenario of a folder with the sample."""
    bought = purchases(folder)
    choices = list(among_promoted(bought, promotions(folder), seed=_SEED))
    history, impressions, following = split(choices, history_share=HISTORY_SHARE, shown=SHOWN, live=len(choices))
    wanted = frozenset(each.item_id for each, _ in bought)
    fields = load_loop(SPEC_FILE).items.fields
    listed = {name: frozenset(getattr(fields[name], "values", ())) for name in ("department", "category")}
    return Scenario(
        spec_file=SPEC_FILE,
        title="The Complete Journey, sample",
        items=list(products(folder, bought[0][0].time, wanted, listed)),
        history=history,
        shown=impressions,
        live=following,
        enough=ENOUGH,
        # The strongest of 3 to 365 days on these choices: NDCG@10 is 0.252 with 7, 0.271 with 30, 0.267 with 90.
        baseline_half_life=Duration.parse("30d"),
        least_gain=None,
    )


def among_promoted(
    bought: Iterable[tuple[UserInteraction, int]], promoted: dict[int, frozenset[str]], *, seed: int
) -> Iterator[Choice]:
    """Give the purchases of promoted products their candidates; all others are only told.

    The others are drawn uniformly from what was promoted in that week and sold in the 60 days before: drawing from
    all that was promoted would let anything win that knows what sells at all.
    """
    recent, random = RecentItems(ACTIVE_S), Random(seed)  # noqa: S311 (no secret: it must be reproducible)
    for interaction, week in bought:
        recent.forget_before(interaction.time)
        seen = promoted.get(week, frozenset())
        candidates: tuple[str, ...] = ()
        if interaction.item_id in seen and interaction.item_id in recent:
            pool = sorted(item for item in seen if item in recent and item != interaction.item_id)
            if len(pool) >= OTHERS:
                drawn = [interaction.item_id, *random.sample(pool, OTHERS)]
                random.shuffle(drawn)
                candidates = tuple(drawn)
        yield Choice(interaction, candidates)
        recent.add(interaction.item_id, interaction.time)
