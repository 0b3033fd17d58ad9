"""The page: sections and what they rest on, in one self-contained HTML file. Generated text is escaped by Jinja."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from rlhf_cli.report.chart import Chart, save, svg
from rlhf_cli.report.frontier_chart import frontier_section
from rlhf_cli.report.knobs import arms, comparisons
from rlhf_cli.report.opening import opening
from rlhf_cli.report.runs import Run
from rlhf_cli.report.sections import Section, Table, compare_section, overview, probe_section, sections_for


def sections_of(
    runs: list[Run],
    probes: list[dict[str, Any]],
    compares: list[dict[str, Any]],
    frontiers: Sequence[dict[str, Any]] = (),
) -> list[Section]:
    """All that these runs can tell."""
    found = arms(runs)
    made = [overview(runs, found)] if runs else []
    made += [frontier_section(told) for told in frontiers]
    made += sections_for(comparisons(found))
    return distinct(made + [probe_section(probe) for probe in probes] + [compare_section(c) for c in compares])


def distinct(sections: list[Section]) -> list[Section]:
    """The same, with a number for each chart whose file would be another one of these."""
    seen: dict[str, int] = {}
    made = []
    for section in sections:
        charts = []
        for chart in section.charts:
            seen[chart.name] = seen.get(chart.name, 0) + 1
            charts.append(replace(chart, number=seen[chart.name]))
        made.append(replace(section, charts=charts))
    return made


def write(
    folder: Path,
    runs: list[Run],
    sections: list[Section],
    *,
    title: str,
    left_out: Sequence[str] = (),
    figures: bool = True,
    refresh: int = 0,
) -> Path:
    """index.html, and each chart as figures/<name>.png and .svg; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "index.html"
    draft = page.with_name(".index.html.tmp")
    draft.write_text(render(runs, sections, title=title, left_out=left_out, refresh=refresh), encoding="utf-8")
    draft.replace(page)
    if figures:
        (folder / "figures").mkdir(exist_ok=True)
        first = opening(runs, arms(runs))
        charts = [first.chart] if first and first.chart else []
        for chart in charts + [chart for s in sections for chart in s.charts]:
            save(chart, folder / "figures")
    return page


def render(
    runs: list[Run],
    sections: list[Section],
    *,
    title: str,
    left_out: Sequence[str] = (),
    refresh: int = 0,
    simulation: bool = False,
) -> str:
    """`left_out`: runs that the page says nothing of, and why; `refresh`: seconds after which a browser loads the page
    again, 0 never; `simulation`: also where the runs do not say so."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals["svg"] = _svg
    template = environment.from_string((Path(__file__).parent / "page.html.jinja").read_text(encoding="utf-8"))
    steps = sorted({run.status.get("steps", 0) for run in runs})
    return template.render(
        title=title,
        subtitle=f"{len(runs)} run{'s' * (len(runs) > 1)}, {' / '.join(map(str, steps))} steps" if runs else "",
        simulation=simulation or any(run.config.get("scale") == "mini" for run in runs),
        first=opening(runs, arms(runs)),
        sections=sections,
        differing=differing(runs),
        left_out=left_out,
        shared=shared(runs),
        machine=machine(runs),
        refresh=refresh,
    )


def _svg(chart: Chart) -> Markup:
    return Markup(svg(chart))  # every name in it is escaped where it is put in


def differing(runs: list[Run]) -> Table:
    """Each run, how it ended, and the keys in which the runs differ."""
    keys = [key for key in _keys(runs) if len({repr(run.config.get(key)) for run in runs}) > 1]
    keys = [key for key in keys if not key.endswith(".hub")]
    rows: list[Any] = []
    common = os.path.commonpath([run.folder.resolve().parent for run in runs]) if runs else ""
    for run in runs:
        ended = f"{run.state} at {run.status.get('step', '?')} of {run.status.get('steps', '?')}"
        rows.append(
            [os.path.relpath(run.folder.resolve(), common), ended, *(str(run.config.get(key, "–")) for key in keys)]
        )
    return Table(f"The runs in {common}, and the keys in which they differ", ["run", "state", *keys], rows)


def shared(runs: list[Run]) -> str:
    """The keys that all runs have in common, as YAML."""
    if not runs:
        return ""
    same = {k: runs[0].config.get(k) for k in _keys(runs) if len({repr(run.config.get(k)) for run in runs}) == 1}
    return yaml.safe_dump(same, sort_keys=False, allow_unicode=True)


def _keys(runs: list[Run]) -> list[str]:
    return list(dict.fromkeys(key for run in runs for key in run.config))


def machine(runs: list[Run]) -> str:
    """Versions, hardware and time, as the runs recorded them."""
    known = {json.dumps(run.environment, sort_keys=True) for run in runs if run.environment}
    told = [", ".join(f"{key} {value}" for key, value in json.loads(one).items()) for one in sorted(known)]
    seconds = sum(run.seconds for run in runs)
    return "; ".join([*told, f"{seconds:.0f} seconds of training in all"])
