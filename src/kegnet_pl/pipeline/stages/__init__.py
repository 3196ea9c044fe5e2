"""The stages: what each computes, from what, and what it leaves in the store."""

from kegnet_pl.pipeline.context import RunContext, build, check_network, result_settings
from kegnet_pl.pipeline.preflight import check_early
from kegnet_pl.pipeline.stages.compression import compression_stage
from kegnet_pl.pipeline.stages.evaluation import evaluation_stage
from kegnet_pl.pipeline.stages.generators import check_generator, generators_stage
from kegnet_pl.pipeline.stages.student import check_student, student_stage
from kegnet_pl.pipeline.stages.teacher import teacher_stage

__all__ = [
    "RunContext",
    "build",
    "check_early",
    "check_generator",
    "check_network",
    "check_student",
    "compression_stage",
    "evaluation_stage",
    "generators_stage",
    "result_settings",
    "student_stage",
    "teacher_stage",
]
