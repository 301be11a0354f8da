"""A task: examples with a prompt and a metric, in three splits that share no prompt."""

from sieve.tasks.build import build_task, task_by_shots
from sieve.tasks.config import TaskConfig
from sieve.tasks.example import Example
from sieve.tasks.task import Task

__all__ = ["Example", "Task", "TaskConfig", "build_task", "task_by_shots"]
