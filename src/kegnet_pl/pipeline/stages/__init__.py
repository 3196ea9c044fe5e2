"""The stages of a run: what each computes, from what, and what it leaves in the store."""

from kegnet_pl.pipeline.stages.compression import compression_stage
from kegnet_pl.pipeline.stages.evaluation import evaluation_stage
from kegnet_pl.pipeline.stages.generators import generators_stage
from kegnet_pl.pipeline.stages.student import student_stage
from kegnet_pl.pipeline.stages.teacher import teacher_stage

__all__ = ["compression_stage", "evaluation_stage", "generators_stage", "student_stage", "teacher_stage"]
