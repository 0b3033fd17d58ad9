"""The schema of each command."""

from rlhf_cli.config.audit_schema import AuditConfig
from rlhf_cli.config.runs_schema import RunsConfig
from rlhf_cli.config.schema import (
    ClassifierTrainConfig,
    CompareConfig,
    Config,
    DataConfig,
    EvalConfig,
    FrontierConfig,
    ModelsConfig,
    ProbeConfig,
    ReportConfig,
    RewardTrainConfig,
    SampleConfig,
)
from rlhf_cli.config.section import Section


def schema_of(command: str) -> type[Section]:
    """What the configs of a command must pass."""
    schemas: dict[str, type[Section]] = {
        "report": ReportConfig,
        "runs": RunsConfig,
        "eval": EvalConfig,
        "sample": SampleConfig,
        "compare": CompareConfig,
        "frontier": FrontierConfig,
        "reward-train": RewardTrainConfig,
        "classifier-train": ClassifierTrainConfig,
        "probe": ProbeConfig,
        "audit": AuditConfig,
        "models": ModelsConfig,
        "data": DataConfig,
    }
    return schemas.get(command, Config)
