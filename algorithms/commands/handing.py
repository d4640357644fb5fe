"""After `polyturn train`: a card beside the weights that were learned, and an upload where one was asked for."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any


def hand_on(
    args: argparse.Namespace,
    method: Any,
    options: Any,
    environment: dict[str, Any] | None,
    folder: Path,
    results: dict[str, float | int],
) -> None:
    """Writes the policy's card into its folder, and uploads both where that was asked for."""
    from polyturn.agents.hub import Made, model_card, push_policy
    from polyturn.envs.settings import record

    given = f" with {environment}" if environment else ""
    program = None if args.program is None else f"{args.program} on {args.tasks}"
    learned = str(args.data) if args.data is not None else program or f"{args.env}{given}"
    settings = {"method": record(method), "training": None if options is None else options.recorded()}
    note = json.loads((folder / "polyturn.json").read_text("utf-8"))
    command = shlex.join(["polyturn", *sys.argv[1:]])
    made = Made(args.method, args.model, learned, command, settings, results, note["system"])
    adapters = (folder / "adapter_config.json").is_file()
    card = model_card(made, args.push or f"{args.method} from {args.model}", adapters=adapters)
    (folder / "README.md").write_text(card, "utf-8")
    if args.push is not None:
        print(f"uploaded to {push_policy(folder, args.push)}")
