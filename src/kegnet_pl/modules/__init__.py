"""LightningModules: they wire networks and losses, and hold no mathematics of their own."""

from kegnet_pl.modules.generator import GeneratorModule
from kegnet_pl.modules.student import Hints, StudentModule
from kegnet_pl.modules.teacher import TeacherModule

__all__ = ["GeneratorModule", "Hints", "StudentModule", "TeacherModule"]
