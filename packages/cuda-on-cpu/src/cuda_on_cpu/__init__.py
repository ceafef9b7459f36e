"""CUDA C++ kernels on any CPU: the same source text, one fiber for each thread, for tests."""

from .build import CompileError, obstacle
from .module import Function, LaunchError, Module

__all__ = ["CompileError", "Function", "LaunchError", "Module", "obstacle"]
