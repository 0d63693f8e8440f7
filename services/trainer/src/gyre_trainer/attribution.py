"""Attribution: which interactions followed which impressions, as one SQL text that DuckDB and Spark both run.

The text reads two relations. `impressions` has place, source, event_id, kafka_partition, kafka_offset, event_us,
request_id, user_id, item_ids and items (how many); `interactions` has source, event_id, kafka_partition, kafka_offset,
event_us, ingest_us, request_id, user_id, item_id and type. Times are unix microseconds; `place` is one number for each
row. A request belongs to its user: an interaction that names another user's request is credited to nothing, and of
several impressions of one (user, request) the first in Kafka's order counts; one that names no request, as those from
before it was required, repeats none. The text keeps to what both engines spell alike: no unnest, no qualify, whole
buckets of the window by modulo.
"""

from __future__ import annotations

from gyre_core.spec import LabelSpec

_US = 1_000_000
_SHARES = {
    "all": "1.0e0",
    "last": "case when row_number() over (partition by act_source, act_id"
    " order by shown_us desc, place desc) = 1 then 1.0e0 else 0.0e0 end",
    "linear": "1.0e0 / count(*) over (partition by act_source, act_id)",
    "decay": "decayed / sum(decayed) over (partition by act_source, act_id)",
}
_COMBINED = {"greatest": "max", "sum": "sum"}
_SHOWN = """
select place, request_id, user_id, item_ids, items, event_us, event_us - event_us % {bucket_us} as bucket
from (
  select *, row_number() over (
      partition by user_id, request_id, case when coalesce(request_id, '') = '' then place else 0 end
      order by kafka_partition, kafka_offset
    ) as answer
  from (
    select place, kafka_partition, kafka_offset, request_id, user_id, item_ids, items, event_us,
      row_number() over (partition by source, event_id order by kafka_partition, kafka_offset) as copy
    from impressions
  ) as impressions_numbered where copy = 1
) as answers_numbered where answer = 1
"""
_QUERY = """
with shown as ({shown}),
acted as (
  select source as act_source, event_id as act_id, event_us as acted_us, ingest_us, coalesce(request_id, '') as request,
    user_id, item_id, type, event_us - event_us % {bucket_us} as bucket
  from (
    select *, row_number() over (partition by source, event_id order by kafka_partition, kafka_offset) as copy
    from interactions where type in ({types})
  ) as interactions_numbered where copy = 1
),
near as (
  select act_source, act_id, acted_us, ingest_us, user_id, item_id, type, bucket from acted where request = ''
  union all
  select act_source, act_id, acted_us, ingest_us, user_id, item_id, type, bucket - {bucket_us} as bucket
  from acted where request = ''
),
touched as (
  select place, item_id, type, ingest_us, act_source, act_id, event_us as shown_us
  from shown join near on shown.user_id = near.user_id and shown.bucket = near.bucket
  where array_contains(item_ids, item_id) and acted_us >= event_us and acted_us <= event_us + {window_us}
),
dated as (select *, max(shown_us) over (partition by act_source, act_id) as newest_us from touched),
weighed as (select *, power(2.0e0, (shown_us - newest_us) / {half_life_us}) as decayed from dated),
credited as (
  select place, item_id, type, ingest_us, shown_us, {share} as share from weighed
  union all
  select place, item_id, type, ingest_us, event_us as shown_us, 1.0e0 as share
  from shown join acted on shown.user_id = acted.user_id and shown.request_id = acted.request
  where acted.request <> '' and array_contains(item_ids, item_id)
    and acted_us >= event_us and acted_us <= event_us + {window_us}
),
newest as ({newest})
select place, item_id, {combined}(share * case type {weights} else 0.0e0 end) as relevance,
  sum(case when ingest_us > shown_us + {window_us} then 1 else 0 end) as late
from credited join newest using (place)
where share > 0 group by place, item_id
having {combined}(share * case type {weights} else 0.0e0 end) > 0
"""
_NEWEST = """
select place from shown where event_us + {window_us} <= {now_us} and items > 1
order by event_us desc, place desc limit {most}
"""
_COUNTS = """
with shown as ({shown}), newest as ({newest})
select (select count(*) from newest) as chosen,
  (select count(*) from shown where event_us + {window_us} > {now_us}) as open_windows
"""


class Attribution:
    """The queries of a label's rules at a moment.

    Args:
        label: which interactions count, for how much, and how impressions share them.
        now: unix seconds; an impression whose window is open then is left out.
        most: how many impressions to take, the newest.
    """

    def __init__(self, label: LabelSpec, *, now: float, most: int) -> None:
        window_us = round(label.attribution_window_s * _US)
        self._numbers = {
            "window_us": window_us,
            "bucket_us": max(window_us, 1),
            "half_life_us": _number(label.half_life_s * _US),
            "now_us": round(now * _US),
            "most": most,
        }
        self._label = label

    @property
    def labels(self) -> str:
        """The labels: (place, item_id, relevance, late), one row for each shown item that got one.

        `late` counts the interactions behind it that were taken in only after the impression's window.
        """
        label = self._label
        weights = " ".join(f"when {_text(each)} then {_number(label.weight(each))}" for each in label.events)
        return _QUERY.format(
            shown=_SHOWN.format(**self._numbers),
            newest=_NEWEST.format(**self._numbers),
            types=", ".join(map(_text, label.events)),
            weights=weights,
            share=_SHARES[label.credit],
            combined=_COMBINED[label.combine],
            **self._numbers,
        )

    @property
    def counts(self) -> str:
        """Two numbers: how many impressions may be trained on, labelled or not, and how many are still open."""
        return _COUNTS.format(
            shown=_SHOWN.format(**self._numbers), newest=_NEWEST.format(**self._numbers), **self._numbers
        )


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _number(value: float) -> str:
    """A literal that both engines take as a double; without an exponent it would be a decimal."""
    return f"{value:.17e}"
