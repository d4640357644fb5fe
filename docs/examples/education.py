"""Education Dialogue end to end: teachers are imitated, judged in pairs, and improved with MTPO (arXiv 2405.14655).

    python docs/examples/education.py --small    a few seconds; shows that everything runs, learns little
    python docs/examples/education.py            on a CPU; no figure of it is committed

The study with figures is the suite: polyturn bench education.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from polyturn.agents import CollectOptions, Policy, Sampling, ScriptedTeacher, TransformerAgent, collect, tiny_policy
from polyturn.algorithms import MTPO, ActorCritic, Rivals, TrainOptions, imitation_options, online, train, warm_start
from polyturn.envs import EducationOracle, Store, dialogue_of, write_dialogues

ENV = "polyturn/EducationDialogue-v0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/education"))
    parser.add_argument("--model", help="start from this folder or Hub id, not from a small model with random weights")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    options = {"turns": 2 if args.small else 4, "topics": ["photosynthesis"] if args.small else None}

    # 1. Conversations of teachers with different habits. The student's way of learning is hidden from them; some ask.
    with Store(args.out / "teachers.jsonl") as store:
        groups = collect(
            ScriptedTeacher(),
            ENV,
            groups=20 if args.small else 1500,
            env_options=options,
            store=store,
            progress=False,
        )
    lessons = [group[0] for group in groups]
    write_dialogues(args.out / "dialogues.json", map(dialogue_of, lessons))  # in the layout of the published data
    print(f"{len(lessons)} conversations of scripted teachers")

    # 2. Imitation: a policy that holds the whole mixture of teachers.
    if args.model:
        policy = Policy.from_pretrained(args.model, dtype="float32")
    else:
        texts = [turn.observation + turn.action for lesson in lessons[:300] for turn in lesson.turns]
        size = {"hidden": 32, "layers": 1, "heads": 2} if args.small else {"hidden": 128, "layers": 2, "heads": 4}
        policy = tiny_policy(texts, seed=0, vocab_size=400 if args.small else 2000, context=1024, **size)
    steps = 2 if args.small else 300
    warm_start(policy, lessons, steps=steps, batch_size=16, options=imitation_options(steps, lr=2e-3))
    policy.save_pretrained(args.out / "sft" / "policy")
    reference = policy.copy(version="sft")

    # 3. The judge compares two whole conversations with the same student; no reward is assumed. It is asked at the end
    #    only, and it is exact here. In its place: judge_by_model = Judged(PromptedJudge(...)), or a function of yours.
    judge = EducationOracle()
    how = CollectOptions(
        groups=2 if args.small else 8,
        group_size=2,
        env_options=options,
        sampling=Sampling(max_new_tokens=8 if args.small else 48),
        max_tokens=1024,
    )
    win_rates = Rivals(
        reference, ENV, judge, starts=2 if args.small else 50, env_options=options, sampling=how.sampling,
        max_tokens=1024,
    )  # fmt: skip

    # 4. MTPO: self-play policy gradients with a value of every turn. The fixed point is the Nash equilibrium of the
    #    preference, regularised towards the reference. Watch eval/win_reference (1/2 at the start) and kl.
    result = train(
        MTPO(kl=0.005, value_warmup=1 if args.small else 10),
        ActorCritic(policy),
        reference,
        online(policy, ENV, preference=judge, collect=how),
        steps=2 if args.small else 60,
        options=TrainOptions(lr=3e-4, evaluate_every=1 if args.small else 30),
        evaluate=win_rates,
        out=args.out / "mtpo",
    )
    for entry in result.history:
        if "eval/win_reference" in entry:
            print(f"step {entry['step']:>3}: wins {100 * entry['eval/win_reference']:.0f}% against the imitation")

    # 5. A conversation of the trained policy and one of the imitation with the same student, side by side in the page.
    policy.version = "mtpo"
    with Store(args.out / "after.jsonl") as store:
        for who in (reference, policy):
            agent = TransformerAgent(who, **how.acting)
            collect(agent, ENV, groups=2, seed=7, env_options=options, store=store, progress=False)
    print(f"look at them: polyturn view {args.out} --open")


if __name__ == "__main__":
    main()
