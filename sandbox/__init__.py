"""Floor 0: where model-written code runs."""

from polyturn.sandbox.opening import open_sandbox
from polyturn.sandbox.sandbox import (
    Capabilities,
    ImageMissing,
    Limits,
    Result,
    Sandbox,
    SandboxError,
    SandboxLost,
    SandboxUnavailable,
    Session,
    Status,
    Timings,
)

__all__ = [
    "Capabilities",
    "ImageMissing",
    "Limits",
    "Result",
    "Sandbox",
    "SandboxError",
    "SandboxLost",
    "SandboxUnavailable",
    "Session",
    "Status",
    "Timings",
    "open_sandbox",
]
