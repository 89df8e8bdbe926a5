"""The settings of a curation, one group per step: what the form of a run shows."""

from pydantic import Field, create_model

from tasks.curation.cut import CutConfig
from tasks.curation.dedup_clips import DedupClipsConfig
from tasks.curation.dedup_sources import DedupSourcesConfig
from tasks.curation.scan import ScanConfig
from tasks.curation.scores import SCORES
from tasks.curation.verdict import VerdictConfig
from tasks.tables.step import StepConfig


class _StepsConfig(StepConfig):
    verdict: VerdictConfig = Field(VerdictConfig(), description="Thresholds: a change here measures nothing again")
    scan: ScanConfig = ScanConfig()
    dedup_sources: DedupSourcesConfig = DedupSourcesConfig()
    cut: CutConfig = CutConfig()
    dedup_clips: DedupClipsConfig = DedupClipsConfig()


CurationConfig = create_model(
    "CurationConfig",
    __base__=_StepsConfig,
    __doc__="How each step measures, and in ``verdict`` what is kept. A changed group re-runs what reads its results.",
    __module__=__name__,
    **{score.name: (score.config, score.config()) for score in SCORES},  # type: ignore[call-overload]
)
