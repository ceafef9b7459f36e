"""Hypothesis strategies over all plans, numbers, shapes, layouts and kinds of values."""

from .calls import cases, many_tensors, numbers
from .common_plans import COMMON_PLANS, CommonPlan, common_plans
from .covering import covering_plans
from .every import BLOCK_SIZES, every_format, every_plan
from .plans import STRATA, any_plan, formats, plans, stratum_name
from .runs import CAUTIOUS, options, runs, trials
from .tensors import few, shapes, tensors

__all__ = [
    "BLOCK_SIZES",
    "CAUTIOUS",
    "COMMON_PLANS",
    "STRATA",
    "CommonPlan",
    "any_plan",
    "cases",
    "common_plans",
    "covering_plans",
    "every_format",
    "every_plan",
    "few",
    "formats",
    "many_tensors",
    "numbers",
    "options",
    "plans",
    "runs",
    "shapes",
    "stratum_name",
    "tensors",
    "trials",
]
