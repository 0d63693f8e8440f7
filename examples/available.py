"""Prints the loop that a demo can run: the wished one, or `simworld` where the wished one's data are missing."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from grocery.dataset import GroceryMissing
from grocery.dataset import find as find_grocery
from movies.dataset import DataMissing, find


def available(wished: str) -> str:
    """The wished loop, or the one that needs no data; says so on stderr."""
    if wished == "movies":
        try:
            find()
        except DataMissing as error:
            print(f"MovieTweetings is missing ({error}).\nRunning the simulated world instead.", file=sys.stderr)
            return "simworld"
    if wished == "grocery":
        try:
            find_grocery()
        except GroceryMissing as error:
            print(f"The Complete Journey is missing ({error}).\nRunning the simulated world instead.", file=sys.stderr)
            return "simworld"
    return wished


if __name__ == "__main__":
    print(available(sys.argv[1]))
