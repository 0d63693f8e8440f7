"""Popular items for one user: half from all, half from the categories that the user likes most."""

from gyre_core.features.state import State

from gyre_features.online.store import OnlineStore

_OWN_CATEGORIES = 3


async def popular_for(store: OnlineStore, user_id: str, limit: int) -> list[tuple[str, float]]:
    """(item id, score) of at most `limit` popular items, best first; of all items for an empty or unknown user.

    Half are of all items, the others of the user's three favourite categories, filled up from all; items that the user
    has seen are among them. Scores are those of `OnlineStore.popular`.
    """
    popular = await store.popular(limit)
    user_value = (await store.read(user_id, [])).user if user_id else None
    categories = favourite_categories(store, user_value)[:_OWN_CATEGORIES]
    if not categories:
        return popular
    found = dict(popular[: max(1, limit // 2)])
    share = max(1, (limit - len(found)) // len(categories))
    for category in categories:
        own = [each for each in await store.popular(limit, category=category) if each[0] not in found]
        found.update(own[:share])
    for item, score in popular:
        if len(found) >= limit:
            break
        found.setdefault(item, score)
    return sorted(found.items(), key=lambda each: -each[1])[:limit]


def favourite_categories(store: OnlineStore, user_value: bytes | None) -> list[str]:
    """The categories of the recommendation field that a user's packed value has a positive weight of, greatest first.

    Empty for None, and where the layout has no affinity to that field.
    """
    field, slots = store.spec.serving.recommend.genre_field, store.layout.slots("user")
    if user_value is None or field is None or store.popularity is None:
        return []
    sums = State.unpack(slots, user_value).sums
    weights: dict[int, float] = {}
    for slot, weight in zip(slots.sums, sums, strict=True):
        if slot.measure == "affinity" and slot.field == field and weight > 0:
            weights[slot.category] = max(weights.get(slot.category, 0.0), float(weight))
    best = sorted(weights, key=lambda category: -weights[category])
    return [store.popularity.categories[category] for category in best]
