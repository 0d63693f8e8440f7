"""The command line: what it prints, where it ends with 1, and that every error is one line that says what to do."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from gyre.features.v1 import features_pb2 as features_pb
from gyre.features.v1.features_pb2_grpc import FeaturesServiceServicer, add_FeaturesServiceServicer_to_server
from gyre_client import ClientSettings
from gyre_core.spec import LoopSpec
from gyre_core.topics import declared
from gyre_runtime import Health, Registration, ServiceSettings, build_server
from gyre_runtime.kafka import create_topics
from gyre_runtime.kafka.topics import DeadLetterTopic
from typer.testing import Result

Gyre = Callable[..., Result]
ServeGateway = Callable[..., Awaitable[ClientSettings]]


def test_a_valid_file_is_said_to_be_valid(gyre: Gyre, loop_file: Path) -> None:
    """`gyre validate` names the loop and its layout."""
    result = gyre("validate", str(loop_file))
    assert result.exit_code == 0
    assert "is valid: 1 features in 1 columns, layout " in result.output


def test_every_mistake_is_named_with_its_line(gyre: Gyre, loop_file: Path) -> None:
    """`gyre validate` prints file, line, field, value and rule of each mistake, and ends with 1."""
    loop_file.write_text(
        loop_file.read_text().replace("half_lives: [1d]", "half_lives: [soon]").replace("replay", "sun")
    )
    result = gyre("validate", str(loop_file))
    assert result.exit_code == 1
    assert f"{loop_file}:4: clock = 'sun': must be 'wall' or 'replay'" in result.output
    assert "features[0].half_lives[0] = 'soon': must be a duration like 30m, 7d" in result.output


def test_a_file_that_is_not_there_is_one_line(gyre: Gyre, tmp_path: Path) -> None:
    """A missing file gives a sentence and exit code 1, no traceback."""
    result = gyre("validate", str(tmp_path / "none.yaml"))
    assert result.exit_code == 1
    assert "No such file" in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_the_schema_is_json(gyre: Gyre) -> None:
    """`gyre schema` prints a JSON Schema that knows the parts of a gyre.yaml."""
    result = gyre("schema")
    assert json.loads(result.output)["properties"].keys() >= {"loop", "events", "features", "training"}


def test_topics_are_those_of_the_loop(gyre: Gyre, loop_file: Path, loop: str) -> None:
    """`gyre topics` lists topics with the loop's name in front."""
    result = gyre("topics", str(loop_file))
    assert f"{loop}.behavior.interactions.dlq" in result.output
    assert f"{loop}.models.rollouts" in result.output


async def test_topics_that_are_not_as_declared_are_shown_and_mended(
    gyre: Gyre, kafka: str, loop_file: Path, loop: str
) -> None:
    """`gyre topics --check` names topic, setting, value and rule and fails; after `--apply` all is as declared."""
    await create_topics(kafka, [DeadLetterTopic(f"{loop}.behavior.interactions")])

    async def run(option: str) -> Any:
        return await asyncio.to_thread(gyre, "topics", str(loop_file), option, kafka=kafka)

    differs = await run("--check")
    rule = f"{loop}.behavior.interactions: message.timestamp.type = CreateTime: must be LogAppendTime"
    assert (differs.exit_code, rule in differs.output) == (1, True)
    assert "settings mended" in (await run("--apply")).output
    mended = await run("--check")
    assert (mended.exit_code, mended.output.strip()) == (0, "all topics that exist are as declared")


async def test_a_loop_that_does_not_run_yet_has_no_layouts_in_its_way(gyre: Gyre, kafka: str, loop_file: Path) -> None:
    """`gyre validate --mesh` of a loop without topics in Kafka finds nothing that the file could clash with."""
    result = await asyncio.to_thread(gyre, "validate", str(loop_file), "--mesh", kafka=kafka)
    assert (result.exit_code, "is valid" in result.output) == (0, True)


async def test_rank_shows_items_and_model(gyre: Gyre, serve: ServeGateway, gateway: Any) -> None:
    """`gyre rank` asks with the given time and labels and prints the items in order, the model and the request id."""
    settings = await serve()
    words = ["rank", "shop", "--user", "u1", "--items", "a, b", "--time", "2013-07-10T12:00:00Z", "--sampled"]
    words += ["--label", "device=phone", "--label", "referrer=a=b"]
    result = await asyncio.to_thread(gyre, *words, gateway=settings.gateway)
    assert result.exit_code == 0, result.output
    assert result.output.index(" b ") < result.output.index(" a ")
    assert "request made: model v1, arm live" in result.output
    assert gateway.requests[0].context.request_time.ToSeconds() == 1373457600
    assert dict(gateway.requests[0].context.labels) == {"device": "phone", "referrer": "a=b"}
    assert "traceparent" in gateway.metadata[0]
    wrong = await asyncio.to_thread(gyre, "rank", "shop", "--user", "u1", "--items", "a", "--label", "phone")
    assert (wrong.exit_code, "must be name=value" in wrong.output) == (1, True)


async def test_brackets_in_ids_are_shown_as_they_are(gyre: Gyre, serve: ServeGateway) -> None:
    """What looks like markup to a terminal's library is part of an id, opened, closed or neither."""
    settings = await serve()
    words = ["rank", "shop", "--user", "u1", "--items", "[/b],[bold],c[0]"]
    result = await asyncio.to_thread(gyre, *words, gateway=settings.gateway)
    assert result.exit_code == 0, result.output
    assert all(each in result.output for each in ("[/b]", "[bold]", "c[0]"))


@pytest.mark.parametrize("time", ["inf", "nan", "1e300", "-1e12"])
async def test_a_time_that_is_none_is_refused(gyre: Gyre, time: str) -> None:
    """Seconds that no calendar has are refused by name and rule, before anybody is asked."""
    result = await asyncio.to_thread(gyre, "rank", "shop", "--user", "u1", "--items", "a", f"--time={time}")
    assert (result.exit_code, f"time = '{time}': must be a time from year 1 to 9999" in result.output) == (1, True)


async def test_json_is_for_programs(gyre: Gyre, serve: ServeGateway) -> None:
    """With --json the answer is the protocol's message."""
    settings = await serve()
    words = ["recommend", "shop", "--user", "u1", "--limit", "2", "--json"]
    result = await asyncio.to_thread(gyre, *words, gateway=settings.gateway)
    assert [item["item_id"] for item in json.loads(result.output)["items"]] == ["i0", "i1"]


async def test_track_prints_the_event_id(gyre: Gyre, serve: ServeGateway, gateway: Any) -> None:
    """`gyre track` sends the interaction and prints the id that it got."""
    settings = await serve()
    words = ["track", "shop", "--user", "u1", "--item", "i1", "--type", "rating", "--value", "0", "--request", "r1"]
    result = await asyncio.to_thread(gyre, *words, gateway=settings.gateway)
    (event,) = gateway.requests[0].events
    assert result.output.strip() == event.event_id
    assert (event.interaction.value, event.interaction.request_id) == (0.0, "r1")


async def test_the_token_comes_from_the_environment(gyre: Gyre, serve: ServeGateway, tmp_path: Path) -> None:
    """Without GYRE_TOKEN a closed gateway refuses and the message names the variable; with it, it answers."""
    secret = tmp_path / "token"
    secret.write_text("open sesame")
    settings = await serve(token_file=secret)
    words = ["rank", "shop", "--user", "u1", "--items", "a"]
    refused = await asyncio.to_thread(gyre, *words, gateway=settings.gateway)
    assert refused.exit_code == 1
    assert "GYRE_TOKEN" in refused.output
    assert (await asyncio.to_thread(gyre, *words, gateway=settings.gateway, token="open sesame")).exit_code == 0


@pytest.mark.parametrize(
    ("words", "service"),
    [
        (["status", "shop"], "monitor"),
        (["experiment", "shop"], "monitor"),
        (["trace", "shop", "r1"], "monitor"),
        (["runs", "shop"], "trainer"),
        (["train", "shop"], "trainer"),
        (["rollouts", "shop"], "deployer"),
        (["promote", "shop"], "deployer"),
        (["dlq", "list", "shop"], "kafka"),
        (["forget", "shop", "u1"], "features"),
    ],
)
def test_a_service_that_is_away_is_one_line_with_its_remedy(gyre: Gyre, words: list[str], service: str) -> None:
    """The message names service, address, the command that starts it and the variable that names another."""
    result = gyre(*words, **{service: "127.0.0.1:9"})
    assert result.exit_code == 1
    assert result.output.strip().splitlines()[-1] == (
        f"{service} at 127.0.0.1:9 does not answer: start it with `make up`, or name another in GYRE_{service.upper()}."
    )


async def test_a_broken_rule_is_one_line(gyre: Gyre, serve: ServeGateway) -> None:
    """What the gateway refuses is told as field, value and rule."""
    settings = await serve()
    words = ["rank", "shop", "--user", "", "--items", "a"]
    result = await asyncio.to_thread(gyre, *words, gateway=settings.gateway)
    assert result.exit_code == 1
    assert result.output == "user_id: is required\n"


def test_a_time_without_an_offset_is_refused(gyre: Gyre) -> None:
    """A local time would be read differently on every machine."""
    result = gyre("rank", "shop", "--user", "u", "--items", "a", "--time", "2013-07-10T12:00:00")
    assert result.exit_code == 1
    assert "must carry its UTC offset" in result.output


def test_a_wrong_setting_stops_the_command(gyre: Gyre) -> None:
    """An unknown GYRE_ variable is named, as it is by every process."""
    result = gyre("status", "shop", monitr="127.0.0.1:1")
    assert result.exit_code != 0
    assert "GYRE_MONITR" in str(result.exception) + result.output


@pytest.mark.adapter
@pytest.mark.timeout(120)
async def test_settings_of_the_command_line_stop_no_job(
    gyre: Gyre, kafka: str, spec: LoopSpec, loop_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With a caller's token, source and authority in the shell, `gyre maintain` still has every service's job done."""
    await create_topics(kafka, declared(spec))
    places = {name: str(tmp_path / name) for name in ("warehouse", "artifacts", "state_dir", "triton_repository")}
    of_the_caller = {"token": "s3cret", "source": "shop-app", "tls_ca": str(tmp_path / "ca.pem")}
    run = await asyncio.to_thread(
        gyre, "maintain", "--dry-run", kafka=kafka, loops=str(loop_file), **places, **of_the_caller
    )
    said = capfd.readouterr()
    assert run.exit_code == 0, run.output + said.out + said.err
    assert f"{spec.loop}: rows to delete: none" in said.out


class ToldFeatures(FeaturesServiceServicer):
    """Answers a deletion as it is told."""

    def __init__(self, answer: features_pb.DeleteEntityResponse) -> None:
        self.answer, self.requests = answer, list[Any]()

    async def DeleteEntity(self, request: Any, context: Any) -> features_pb.DeleteEntityResponse:  # noqa: N802
        """Answer."""
        self.requests.append(request)
        return self.answer


@pytest.mark.parametrize("erased", [True, False])
async def test_forget_says_what_is_left(gyre: Gyre, *, erased: bool) -> None:
    """`gyre forget` ends well only when the warehouse has answered and nothing was found."""
    answer = features_pb.DeleteEntityResponse(deleted_keys=1, warehouse_erased=erased, erased_rows={"interactions": 7})
    answer.kafka_until_time.FromSeconds(1373457600)
    features = ToldFeatures(answer)
    services = [Registration(add_FeaturesServiceServicer_to_server, features)]
    async with build_server(ServiceSettings(drain_s=1), services, health=Health()) as server:
        result = await asyncio.to_thread(gyre, "forget", "shop", "u1", features=server.address)
    assert result.exit_code == (0 if erased else 1)
    assert "online: 1 keys deleted, 0 found afterwards" in result.output
    assert ("7 of interactions; 0 found afterwards" if erased else "not erased yet") in result.output
    assert "until 2013-07-10 12:00:00 UTC" in result.output
    assert (features.requests[0].id, features.requests[0].kind) == ("u1", features_pb.ENTITY_KIND_USER)
