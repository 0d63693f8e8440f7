"""How the movies example replays MovieTweetings: 70 % history, then each rating as a choice among 100 films."""

from pathlib import Path

from demo_loop.scenario import Scenario, split, with_candidates
from movies.dataset import films, ratings

SPEC_FILE = Path(__file__).with_name("gyre.yaml")
HISTORY_SHARE = 0.7
ACTIVE_S = 30 * 86_400.0
SHOWN = 5_000
ENOUGH, MOST = 6_000, 24_000
_SEED = 20130701


def scenario(folder: Path, *, shown: int = SHOWN, enough: int = ENOUGH) -> Scenario:
    """The scenario of a folder with MovieTweetings.

    The 99 other candidates are drawn uniformly from the films that were rated in the 30 days before. The newest `shown`
    ratings of the history get an impression, which MovieTweetings has not; at least `enough` ratings are replayed.
    """
    rated = ratings(folder)
    choices = list(with_candidates(rated, window_s=ACTIVE_S, seed=_SEED))
    history, impressions, following = split(choices, history_share=HISTORY_SHARE, shown=shown, live=MOST)
    return Scenario(
        spec_file=SPEC_FILE,
        title="MovieTweetings 100K",
        items=list(films(folder, rated[0].time)),
        history=history,
        shown=impressions,
        live=following,
        enough=enough,
    )
