"""Settings of the deployer, beyond those that every process has."""

from gyre_runtime import ServiceSettings
from gyre_runtime.settings import KafkaSettings, ModelRepositorySettings, TritonSettings
from pydantic import Field


class DeployerSettings(ServiceSettings, KafkaSettings, TritonSettings, ModelRepositorySettings):
    """What the deployer reads from the environment."""

    service = "deployer"

    deployer_tick_s: float = Field(0.25, gt=0, le=10)
    """Seconds between two looks at what is to be done next."""
    deployer_triton_timeout_s: float = Field(60.0, gt=0, le=600)
    """The longest that Triton may take to load, unload or score with a model, seconds."""
    deployer_warmup_requests: int = Field(20, ge=1, le=10_000)
    """Requests that warm a candidate up before it takes traffic."""
    deployer_warmup_rows: int = Field(100, ge=1, le=4096)
    """Candidates to score in each of them."""
    deployer_load_backoff_s: float = Field(1.0, gt=0, le=60)
    """Pause after a version could not be loaded, seconds; it doubles with each further failure, up to a minute."""
    deployer_outage_pause_s: float = Field(1.0, gt=0, le=600)
    """How long Triton must answer after an outage before a candidate has traffic again, seconds; doubles each time."""
    deployer_layout_wait_s: float = Field(3600.0, gt=0)
    """How long a candidate waits for its feature layout to be known and filled, seconds; after that it is refused. With
    users it is rolled back once the features of its layout could not be read for so long. Both may be offered again. A
    candidate of which every request lay in intervals in which live suffered is held no longer than that, either."""
