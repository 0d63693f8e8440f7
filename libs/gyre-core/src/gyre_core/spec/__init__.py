"""The loop spec: `gyre.yaml` as frozen, validated models; an error names file, line, field, value and rule."""

from gyre_core.spec.checks import Violation
from gyre_core.spec.columns import feature_columns
from gyre_core.spec.duration import Duration
from gyre_core.spec.features import (
    IMPRESSION,
    AffinityFeature,
    AgeFeature,
    ContextFeature,
    DecayedCountFeature,
    DecayedMeanFeature,
    DecayedRateFeature,
    Feature,
    FieldFeature,
    HistoryFeature,
    Prior,
    RankFeature,
    ZScoreFeature,
)
from gyre_core.spec.fields import (
    BooleanField,
    CategoriesField,
    CategoryField,
    Field,
    NumberField,
    TextField,
    TimeField,
)
from gyre_core.spec.issues import SpecError, SpecIssue
from gyre_core.spec.loading import json_schema, load_loop, parse_loop, parse_yaml
from gyre_core.spec.loop import InteractionSpec, LoopSpec
from gyre_core.spec.operations import (
    EvaluationSpec,
    ExperimentSpec,
    GateSpec,
    GuardrailSpec,
    LabelSpec,
    ModelSpec,
    RolloutSpec,
    RolloutStep,
    ServingSpec,
    TrainingSpec,
)
from gyre_core.spec.quality import CHECKS, ChecksSpec, QualitySpec

__all__ = [
    "CHECKS",
    "IMPRESSION",
    "AffinityFeature",
    "AgeFeature",
    "BooleanField",
    "CategoriesField",
    "CategoryField",
    "ChecksSpec",
    "ContextFeature",
    "DecayedCountFeature",
    "DecayedMeanFeature",
    "DecayedRateFeature",
    "Duration",
    "EvaluationSpec",
    "ExperimentSpec",
    "Feature",
    "Field",
    "FieldFeature",
    "GateSpec",
    "GuardrailSpec",
    "HistoryFeature",
    "InteractionSpec",
    "LabelSpec",
    "LoopSpec",
    "ModelSpec",
    "NumberField",
    "Prior",
    "QualitySpec",
    "RankFeature",
    "RolloutSpec",
    "RolloutStep",
    "ServingSpec",
    "SpecError",
    "SpecIssue",
    "TextField",
    "TimeField",
    "TrainingSpec",
    "Violation",
    "ZScoreFeature",
    "feature_columns",
    "json_schema",
    "load_loop",
    "parse_loop",
    "parse_yaml",
]
