"""rlhf report"""

import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

LIVE_SECONDS = 5


def run(cfg: DictConfig) -> None:
    """One HTML page from run folders; `live=true` makes it anew until no run is going on."""
    from hydra.core.hydra_config import HydraConfig

    from rlhf_cli.config.compose import settle
    from rlhf_cli.config.errors import UserError
    from rlhf_cli.config.folders import check_writable
    from rlhf_cli.report.knobs import arms
    from rlhf_cli.report.opening import opening
    from rlhf_cli.report.page import sections_of, write
    from rlhf_cli.report.runs import find, frontiers, left_out
    from rlhf_cli.runs.status import alive

    hydra = HydraConfig.get()
    config = settle("report", cfg, list(hydra.overrides.task))
    if not config.runs:
        raise UserError("runs=[]: give the folders of runs or sweeps: rlhf report outputs/2026-01-31/12-00-00_sweep")
    out = Path(config.out or hydra.runtime.output_dir).expanduser()
    check_writable(str(out), "out")
    while True:
        runs, probes, compares = find(config.runs)
        going_on = config.live and any(alive(run.status) for run in runs)
        sections = sections_of(runs, probes, compares, frontiers(config.runs, runs))
        refresh = LIVE_SECONDS if going_on else 0
        missing = left_out(config.runs, runs)
        page = write(out, runs, sections, title=config.title, left_out=missing, figures=not going_on, refresh=refresh)
        if not going_on:
            break
        print(f"\r{_progress(runs)}: {page}", end="", flush=True)
        time.sleep(LIVE_SECONDS)
    first = opening(runs, arms(runs))
    if first:
        print("\n".join([*first.verdict, ""]))
    for section in sections:
        print(f"{section.title}: {section.answer}")
    for line in missing:
        print(f"left out: {line}")
    print(f"written: {page}" + (f" and {out / 'figures'}" if any(s.charts for s in sections) else ""))
    if config.tracking.wandb:
        _mirror(config, out, sections, [first.chart] if first and first.chart else [])


def _progress(runs: list[Any]) -> str:
    steps = [(run.status.get("step", 0), run.status.get("steps", 0)) for run in runs]
    return f"{sum(step for step, _ in steps)} of {sum(of for _, of in steps)} steps of {len(runs)} runs"


def _mirror(config: Any, out: Path, sections: list[Any], opened: list[Any]) -> None:
    """The same page, tables and figures in W&B."""
    import wandb

    from rlhf_cli.tracking.wandb_tracker import WandbTracker

    def notify(text: str) -> None:
        print(text, flush=True)

    tracker = WandbTracker(
        out,
        {"runs": config.runs},
        project=config.tracking.project,
        entity=config.tracking.entity,
        name=config.title,
        group=config.tracking.group,
        mode=config.tracking.wandb,
        run_id=None,
        resume=False,
        notify=notify,
    )
    media: dict[str, Any] = {"report": wandb.Html((out / "index.html").read_text(encoding="utf-8"))}
    for chart in opened + [chart for section in sections for chart in section.charts]:
        media[f"report/{chart.name}"] = wandb.Image(str(out / "figures" / f"{chart.name}.png"))
    for section in sections:
        for number, table in enumerate(section.tables):
            cells = [[c if isinstance(c, str) else "".join(t for t, _ in c) for c in row] for row in table.rows]
            media[f"report/{section.title}/table_{number}"] = wandb.Table(columns=table.columns, data=cells)
    tracker.log(0, media)
    tracker.finish("done")
