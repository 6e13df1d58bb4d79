"""One evaluation for everything."""

from agent.eval.evaluate import EvalResult, evaluate

__all__ = ["EvalResult", "evaluate"]
