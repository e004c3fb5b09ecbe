"""What a run says of itself: metrics.jsonl, TensorBoard, the progress bar, rates, memory, environment."""

from artkv.monitoring.environment import environment_report
from artkv.monitoring.memory import peak_device_bytes, peak_host_bytes
from artkv.monitoring.run_log import RunLog
from artkv.monitoring.tensorboard_log import AnsweredQuestion
from artkv.monitoring.throughput import StepClock

__all__ = [
    "AnsweredQuestion",
    "RunLog",
    "StepClock",
    "environment_report",
    "peak_device_bytes",
    "peak_host_bytes",
]
