"""The stages: what each computes, from what, and what it leaves in the store."""

from kegnet_pl.stages.compression import compression_stage
from kegnet_pl.stages.early import check_early
from kegnet_pl.stages.evaluation import evaluation_stage
from kegnet_pl.stages.generators import check_generator, generators_stage
from kegnet_pl.stages.student import check_student, student_stage
from kegnet_pl.stages.teacher import teacher_stage
from kegnet_pl.stages.workshop import Workshop, build, check_network, result_settings

__all__ = [
    "Workshop",
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
