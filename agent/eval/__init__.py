"""One evaluation for everything."""

from agent.eval.evaluate import EvalResult, evaluate, is_solvable

__all__ = ["EvalResult", "evaluate", "is_solvable"]
