"""The table of docs/memory.md: what PPO, PPO with a shared critic and GRPO need at the full scale's sizes, computed.

python scripts/memory.py
"""

from rlhf_cli.engine.budget import CLASSIFIERS, GB, SHAPES, Work, budget

CARDS = (8, 16, 24, 80)
WORK = Work(rows=8, decoded=64, prompt=60, response=200, checkpointing=True, half=True)
JUDGES = [CLASSIFIERS["roberta_large"]]


def main() -> None:
    print("| model | what learns | PPO, own critic | PPO, critic=shared | GRPO | fits in (GRPO / shared / own) |")
    print("|---|---|---|---|---|---|")
    for name in ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-3B"):
        for rank, learns in ((0, "all weights"), (16, "LoRA, rank 16")):
            sizes = {
                critic: sum(budget(SHAPES[name], critic=critic, judges=JUDGES, work=WORK, rank=rank).values()) / GB
                for critic in ("own", "shared", "none")
            }
            fits = " / ".join(card(sizes[critic]) for critic in ("none", "shared", "own"))
            shown = " | ".join(f"{size:.1f} GB" for size in sizes.values())
            print(f"| {name.rpartition('/')[2]} | {learns} | {shown} | {fits} |")


def card(size: float) -> str:
    return next((f"{gb} GB" for gb in CARDS if size < 0.92 * gb), "none of these")


if __name__ == "__main__":
    main()
