"""The monitor: metrics by version and arm, triggers, loop status, traces and lineage."""
