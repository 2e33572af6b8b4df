"""Measure steering on pictures: draw prompts in ComfyUI with and without it on the same seeds, judge them, report.

    from directions.evaluate import run
    report = run(["http://127.0.0.1:8188"], "workflow.json", "prompts.csv", "runs/first", alphas=[3, 5], modes=["gate"])

settings   what is compared
prompts    reads the prompt files
client     edits the workflow and talks to the servers
progress   runs one graph, with a bar
generate   draws
judges     look at pictures; judging keeps what they said
metrics    count
report     writes
runner     all of it
"""

from .client import GraphError, Remote, ServerLost
from .judges import JudgeMissing
from .runner import run
from .settings import Setting, plan

__all__ = ["GraphError", "JudgeMissing", "Remote", "ServerLost", "Setting", "plan", "run"]
