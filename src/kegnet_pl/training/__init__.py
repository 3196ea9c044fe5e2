"""LightningModules: they wire networks and losses, and hold no mathematics."""

from kegnet_pl.training.generator_module import GeneratorModule
from kegnet_pl.training.student_module import FeatureDistillation, StudentModule
from kegnet_pl.training.teacher_module import TeacherModule

__all__ = ["FeatureDistillation", "GeneratorModule", "StudentModule", "TeacherModule"]
