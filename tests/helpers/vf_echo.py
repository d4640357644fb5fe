"""A taskset of verifiers with a harness that runs in this process: two questions, rewarded for long answers."""

from __future__ import annotations

import openai
import verifiers.v1 as vf
from verifiers.v1.runtimes import ProgramResult

__all__ = ["EchoHarness", "EchoTaskset"]


class EchoTask(vf.Task):
    @vf.reward
    async def letters(self, trace: vf.Trace) -> float:
        """How many letters its answers have."""
        said = [message for message in trace.branches[-1].messages if message.role == "assistant"]
        return float(sum(len(str(message.content)) for message in said))


class EchoTaskset(vf.Taskset[EchoTask, vf.TasksetConfig]):
    def load(self) -> list[EchoTask]:
        names = ("first", "second", "broken")
        return [EchoTask(vf.TaskData(id=name, prompt=f"Say {name}."), self.config.task) for name in names]


class EchoHarness(vf.Harness[vf.HarnessConfig]):
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(self, ctx, trace, runtime, endpoint, secret, mcp_urls, data):
        if data.id == "broken":
            raise ConnectionError("the harness fell over")
        messages = [{"role": "user", "content": data.prompt}]
        async with openai.AsyncOpenAI(base_url=endpoint, api_key=secret) as api:
            for question in ("And again?", ""):
                answer = await api.chat.completions.create(model=ctx.model, messages=messages)
                messages.append({"role": "assistant", "content": answer.choices[0].message.content})
                messages.append({"role": "user", "content": question})
        return ProgramResult(exit_code=0, stdout="", stderr="")
