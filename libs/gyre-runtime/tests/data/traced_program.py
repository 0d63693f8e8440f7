"""A process that makes a request span, a model span with a child, a log line and a metric, prints /metrics and ends."""

import logging
import sys
import urllib.request

from gyre_runtime import ServiceSettings, instrument, load_settings, model_tracer, setup_telemetry, start_span

LINK = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def main() -> None:
    """Run the program."""
    telemetry = setup_telemetry("traced", load_settings(ServiceSettings))
    with start_span("request"):
        pass
    with model_tracer().span("train", links=[LINK]), start_span("read snapshot"):
        logging.getLogger("program").info("training", extra={"loop": "movies"})
        instrument("gyre_trainer_runs_total").add(1, loop="movies", state="STARTED")
    with urllib.request.urlopen(f"http://{telemetry.metrics_address}/metrics") as answer:
        sys.stdout.write(answer.read().decode())
    telemetry.shutdown()


main()
