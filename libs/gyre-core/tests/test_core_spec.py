"""The loop spec: what a good file means, and how a bad one is refused."""

from pathlib import Path

import pytest
from gyre_core.spec import LoopSpec, SpecError, SpecIssue, json_schema, parse_loop

FULL = (Path(__file__).parent / "data" / "full.yaml").read_text()


def issues_of(text: str) -> tuple[SpecIssue, ...]:
    """The issues that a text raises; fails when it raises none."""
    with pytest.raises(SpecError) as caught:
        parse_loop(text, source="examples/x/gyre.yaml")
    return caught.value.issues


def changed(old: str, new: str) -> str:
    """The full sample with one change, which must apply."""
    assert old in FULL
    return FULL.replace(old, new, 1)


def test_minimal_loop_is_short_and_complete(minimal_loop: LoopSpec) -> None:
    """A loop of fifteen lines gets defaults for everything else."""
    assert minimal_loop.clock == "wall"
    assert minimal_loop.max_lateness_s == 3600
    assert minimal_loop.training.label.events == ("click",)
    assert minimal_loop.training.label.weight("click") == 1.0
    assert minimal_loop.experiment.salt == "shop"
    assert minimal_loop.experiment.clicks == minimal_loop.experiment.conversions == ("click",)
    assert [step.share for step in minimal_loop.rollout.steps] == [0.1, 0.5, 1.0]
    assert minimal_loop.model_columns() == minimal_loop.columns()


def test_quality_actions_are_data(full_loop: LoopSpec) -> None:
    """What follows a failed check is read from the file, and an unknown action or name is refused."""
    assert full_loop.quality.actions == {"drift": "warn", "labels": "quarantine", "drift.psi": "block"}
    assert {issue.field for issue in issues_of(changed("drift: warn", "drift: explode"))} == {"quality.actions.drift"}
    assert issues_of(changed("drift.psi: block", "Drift psi: block"))


NUMBERS = """
version: 1
loop: shop
events: {{interactions: {{click: {{}}, rate: {{value: {{min: {least}, max: {greatest}}}}}}}}}
items: {{fields: {{price: {{kind: number, default: {price}}}, at: {{kind: time}}}}}}
training: {{label: {{events: [click], weights: {{click: {label}}}}}}}
features:
  - {{name: rate, kind: decayed_rate, scope: item, events: [click], per: [click], half_lives: [1d],
      prior: {{mean: {mean}, weight: {weight}}}}}
  - {{name: device, kind: context, field: device, default: {device}}}
  - {{name: age, kind: age, scope: item, field: at, default: {age}}}
"""
GIVEN = {"least": 0, "greatest": 10, "price": 0, "label": 1, "mean": 0, "weight": 1, "device": 0, "age": 0}
PLACES = {
    "least": "events.interactions.rate.value.min",
    "greatest": "events.interactions.rate.value.max",
    "price": "items.fields.price.default",
    "label": "training.label.weights.click",
    "mean": "features[0].prior.mean",
    "weight": "features[0].prior.weight",
    "device": "features[1].default",
    "age": "features[2].default",
}


@pytest.mark.parametrize("name", GIVEN)
def test_a_number_that_reaches_a_feature_fits_into_float32(name: str) -> None:
    """A number beyond float32 would be infinite as a feature: it is refused with field, value and rule."""
    assert parse_loop(NUMBERS.format(**GIVEN)).loop == "shop"
    for value in ("1.0e39", "3.5e+38"):
        try:
            parse_loop(NUMBERS.format(**{**GIVEN, name: value}))
            found = []
        except SpecError as error:
            found = [(each.field, float(each.value.strip("'"))) for each in error.issues if "float32" in each.rule]
        assert found == [(PLACES[name], float(value))]


def test_columns_follow_the_declarations(full_loop: LoopSpec) -> None:
    """Half-lives and category values become columns, in declared order."""
    columns = full_loop.columns()
    assert columns[:6] == (
        "item_year",
        "item_title",
        "item_genres_action",
        "item_genres_comedy",
        "item_genres_drama",
        "item_genres_sci_fi",
    )
    assert {"item_rate_6h", "item_rate_30d", "last_items_seen", "last_items_overlap", "rank_7d"} <= set(columns)
    assert len(set(columns)) == len(columns)


def test_model_columns_expand_features(full_loop: LoopSpec) -> None:
    """A model names features or single columns and gets columns."""
    rates = tuple(f"item_rate_{half_life}" for half_life in ("6h", "1d", "7d", "30d"))
    rest = ("item_score_30d", "genre_affinity_30d", "rank_7d", "hour")
    assert full_loop.model_columns() == rates + rest


def test_clicks_and_conversions_are_what_the_loop_says() -> None:
    """An experiment counts the declared clicks and conversions, and the label's events for what is not declared."""
    given = parse_loop(changed("salt: movies-1}", "salt: movies-1, clicks: [click]}"), source="test")
    assert (given.experiment.clicks, given.experiment.conversions) == (("click",), ("rating",))
    assert (given.experiment.salt, given.experiment.exploration) == ("movies-1", 0.02)


def test_durations_are_seconds(full_loop: LoopSpec) -> None:
    """Every duration is readable in seconds."""
    assert full_loop.serving.deadline_s == 0.2
    assert full_loop.rollout.steps[0].hold_s == 10
    assert full_loop.training.label.attribution_window_s == 1800


def test_an_error_names_file_line_field_value_and_rule() -> None:
    """A bad half-life is reported as a person would point at it."""
    text = changed("half_lives: [6h, 1d, 7d, 30d]", "half_lives: [6h, 7x]")
    (issue,) = issues_of(text)
    line = 1 + next(number for number, content in enumerate(text.splitlines()) if "7x" in content)
    rule = "must be a duration like 30m, 7d"
    assert str(issue) == f"examples/x/gyre.yaml:{line}: features[6].half_lives[1] = '7x': {rule}"


@pytest.mark.parametrize(
    ("old", "new", "field", "rule"),
    [
        ("loop: movies", "loop: Movies", "loop", "must match"),
        ("loop: movies", "loop: a--b", "loop", "must match"),
        ("click: {}", "Click: {}", "events.interactions.Click", "must match"),
        ("clock: replay", "clock: moon", "clock", "must be 'wall' or 'replay'"),
        ("description:", "descriptoin:", "descriptoin", "is not a known field here"),
        ("max_lateness: 1h", "max_lateness: 0s", "events.max_lateness", "must be a duration"),
        ("field: year", "field: yeer", "features[0].field", "must be a declared item field: title, year"),
        ("kind: rank, of: item_rate_7d", "kind: rank, of: nope", "features[17].of", "column of an earlier feature"),
        ("scope: item, events: [rating], half", "events: [rating], half", "features[6].scope", "is required"),
        ("kind: zscore", "kind: zscores", "features[18].kind", "must be one of"),
        ("events: [click]\n", "events: [klick]\n", "features[10].events[0]", "declared event types: rating, click"),
        ("name: item_title", "name: item_year", "features[1].name", "is the name of an earlier feature"),
        ("[item_rate, item_score", "[item_rat, item_score", "model.features[0]", "declared feature or column"),
        ("name: weekday", "name: item_rate_6h", "features[20].name", "gives the column item_rate_6h"),
        ("{share: 0.5, hold", "{share: 0.05, hold", "rollout", "shares rise and end at 1.0"),
        ("logged_rest: 10", "logged_rest: ten", "serving.logged_rest", "must be a valid integer"),
        ("fallback_feature: item_rate_7d", "fallback_feature: x", "serving.fallback_feature", "feature column"),
        ("feature_timeout: 50ms", "feature_timeout: 1s", "serving.feature_timeout", "shorter than the deadline"),
        ("rating: {value: {min: 0", "impression: {value: {min: 0", "events.interactions.impression", "reserved"),
        ("salt: movies-1}", "clicks: [klick]}", "experiment.clicks[0]", "must be a declared interaction type"),
        ("salt: movies-1}", "conversions: [buy]}", "experiment.conversions[0]", "must be a declared interaction type"),
        ("weights: {rating: 1.0}", "credit: first", "training.label.credit", "must be 'all', 'last', 'linear'"),
        ("weights: {rating: 1.0}", "half_life: 5m", "training.label.half_life", "goes with credit: decay; set that"),
        ("weights: {rating: 1.0}", "weights: {rating: 0}", "training.label.weights", "a weight above 0"),
        ("of: last_event, events", "field: released, events", "features[15]", "must give `events` with `of`"),
    ],
)
def test_each_rule_names_its_field_and_line(old: str, new: str, field: str, rule: str) -> None:
    """Whatever is wrong, the first issue stands at its own line and says its rule."""
    text = changed(old, new)
    found = [issue for issue in issues_of(text) if issue.field == field]
    assert found, [str(issue) for issue in issues_of(text)]
    assert rule in found[0].rule
    assert text.splitlines()[found[0].line - 1] != "", found[0]
    key = field.rsplit(".", 1)[-1].split("[", 1)[0]
    assert key in text.splitlines()[found[0].line - 1] or "[" in field


def test_all_issues_are_reported_at_once() -> None:
    """Two mistakes are two issues, so that a file is mended in one go."""
    text = changed("clock: replay", "clock: moon").replace("window: 60s", "window: sixty")
    assert {issue.field for issue in issues_of(text)} == {"clock", "quality.window"}


def test_a_wrong_item_is_not_also_a_missing_one() -> None:
    """The only feature being wrong is one issue, while no feature at all is another."""
    head = "version: 1\nloop: x\nevents: {interactions: {click: {}}}\n"
    (wrong,) = issues_of(head + "features: [{name: a, kind: field}]\n")
    assert (wrong.field, wrong.rule) == ("features[0].field", "is required")
    (empty,) = issues_of(head + "features: []\n")
    assert (empty.field, empty.rule) == ("features", "must have at least 1 item after validation, not 0")


def test_duplicate_keys_are_refused() -> None:
    """A key given twice is an error at its second line, where YAML would silently take the last."""
    (issue,) = issues_of("version: 1\nloop: a\nloop: b\n")
    assert (issue.line, issue.field, issue.rule) == (3, "loop", "is given twice")


@pytest.mark.parametrize("text", ["loop: [", "- a\n- b\n", "", "a: &x 1\nb: *y\n"])
def test_what_is_no_mapping_is_refused_with_its_place(text: str) -> None:
    """Broken YAML and other documents are spec errors with a line, not tracebacks of a parser."""
    (issue,) = issues_of(text)
    assert issue.line >= 1
    assert issue.field == "(file)"


def test_schema_describes_every_part() -> None:
    """The exported JSON Schema knows the parts and the feature kinds, and forbids unknown fields."""
    schema = json_schema()
    assert set(schema["properties"]) >= {"version", "loop", "events", "features", "rollout", "serving"}
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]["features"]["items"]["discriminator"]["mapping"]) >= {"decayed_count", "affinity"}


def test_quality_checks_have_defaults_and_thresholds() -> None:
    """Every check has a threshold without being named, and one that is named keeps the others as they are."""
    plain = parse_loop(FULL, source="test").quality.checks
    assert (plain.completeness.max_missing, plain.volume.max_z, plain.drift.alpha) == (0.05, 4.0, 0.01)
    ranges = "{ranges: {columns: {item_rate_7d: {min: 0, max: 9}, items.year: {min: 1890, max: 2030}}}}"
    given = parse_loop(
        changed("quality: {window", f"quality: {{checks: {ranges}, window"), source="test"
    ).quality.checks
    assert given.ranges.columns["items.year"].max == 2030
    assert given.completeness == plain.completeness


@pytest.mark.parametrize(
    ("checks", "field", "rule"),
    [
        ("{ranges: {columns: {nope: {min: 0, max: 1}}}}", "ranges.columns.nope", "feature column or a number field"),
        ("{ranges: {columns: {hour: {min: 2, max: 1}}}}", "ranges.columns.hour", "must have min <= max"),
        ("{completeness: {columns: {items.nope: 0.1}}}", "completeness.columns.items.nope", "or items.<field>"),
        ("{completeness: {max_missing: 2}}", "completeness.max_missing", "less than or equal to 1"),
        ("{personal_data: {fields: [year]}}", "personal_data.fields[0]", "item field of kind text"),
        (
            "{personal_data: {fields: [interactions.type]}}",
            "personal_data.fields[0]",
            "interactions.user_id or .item_id",
        ),
        ("{personal_data: {fields: [users.nope]}}", "personal_data.fields[0]", "users.<field> of kind text"),
        ("{drift: {alpha: 0}}", "drift.alpha", "greater than 0"),
    ],
)
def test_a_wrong_check_is_refused(checks: str, field: str, rule: str) -> None:
    """Columns that do not exist and thresholds that mean nothing are issues at their own field."""
    (issue,) = issues_of(changed("quality: {window", f"quality: {{checks: {checks}, window"))
    assert issue.field == f"quality.checks.{field}"
    assert rule in issue.rule


def test_an_action_names_a_check() -> None:
    """An action for a check that does not exist would never be taken, and is refused."""
    (issue,) = issues_of(changed("labels: quarantine", "label: quarantine"))
    assert issue.field == "quality.actions.label"
    assert "labels.noise" in issue.rule


PRIVACY = """privacy:
  user_id: hmac
  fields:
    items.title: {action: redact, entities: [EMAIL_ADDRESS]}
    labels.session: {action: hash, key: rotating}
    labels.referrer: {action: drop}
"""


def test_privacy_rules_are_declared() -> None:
    """A loop says what becomes of ids and texts; one that says nothing keeps all and needs no key."""
    spec = parse_loop(changed("rollout:", f"{PRIVACY}rollout:"))
    assert spec.privacy.hashes
    assert spec.privacy.declared
    assert spec.privacy.fields["labels.session"].key == "rotating"
    plain = parse_loop(changed("", "")).privacy
    assert (plain.declared, plain.hashes, plain.user_id) == (False, False, "plain")


@pytest.mark.parametrize(
    ("old", "new", "field", "rule"),
    [
        ("items.title", "items.titel", "fields.items.titel", "declared field of items"),
        ("items.title: {action: redact, entities: [EMAIL_ADDRESS]}", "items.year: {action: redact}", "year", "text"),
        ("items.title: {action: redact, entities: [EMAIL_ADDRESS]}", "items.genres: {action: hash}", "genres", "text"),
        ("items.title: {action: redact, entities: [EMAIL_ADDRESS]}", "items.year: {action: drop}", "year", "reads it"),
        ("labels.referrer", "users.name", "fields.users.name", "must be a declared field of users"),
        ("labels.referrer", "shops.name", "fields.shops.name", "must match"),
        ("action: redact", "action: blur", "action", "must be 'drop', 'redact' or 'hash'"),
        ("{action: drop}", "{action: drop, key: rotating}", "labels.referrer", "unless the action is hash"),
        ("{action: drop}", "{action: drop, entities: [URL]}", "labels.referrer", "unless the action is redact"),
    ],
)
def test_privacy_rules_that_cannot_work_are_refused(old: str, new: str, field: str, rule: str) -> None:
    """A rule for what does not exist, cannot be masked so, or is read by a feature is an issue at its own field."""
    issues = issues_of(changed("rollout:", f"{PRIVACY.replace(old, new)}rollout:"))
    assert any(field in issue.field and rule in issue.rule for issue in issues), [str(issue) for issue in issues]
