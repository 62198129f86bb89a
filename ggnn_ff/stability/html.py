"""A check as one HTML page that needs nothing else: verdicts, plots, the trajectory in 3D, provenance.

The page loads nothing from anywhere, and its content security policy lets it load nothing. The 3D view is drawn by
3Dmol.js (N. Rego and D. Koes, Bioinformatics 2015, 31, 1322), which comes with the package.
"""

import platform
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import numpy as np
from ase.symbols import Symbols

from ggnn_ff.errors import InputError
from ggnn_ff.files import holding, write_atomically
from ggnn_ff.stability.frames import Trajectory
from ggnn_ff.stability.plots import check_panels, new_figure
from ggnn_ff.stability.report import Report
from ggnn_ff.stability.verdict import Verdict
from ggnn_ff.stability.viewer import MOST_ATOMS, Highlight, read_text, viewer_script, viewer_section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FAILED, _PASSED = ("fail", "✕", "failed"), ("pass", "✓", "passed")  # style, sign, word
_NOT_JUDGED, _MEASURED = ("open", "–", "not judged"), ("note", "·", "measured")

_CAPTIONS = {
    "total energy": "Total energy. Per atom and from its first value; the straight line is the fitted drift.",
    "exchange of energy": "Exchange of energy. Kinetic and potential energy per atom, the latter from its first value.",
    "distances between all atoms": "Distances between all atoms. Their distribution h(r) over all frames.",
    "largest bond deviation": "Largest bond deviation. Of each frame; beyond the dashed line a bond counts as broken.",
    "radial distribution functions": "Radial distribution functions. Of each pair of elements, dashed those of the "
    "reference; the peaks of bonds may be higher than the picture.",
    "mean square displacement": "Mean square displacement. Of each element against the centre of mass; the diffusion "
    "coefficient is fitted where it is grey.",
    "vibrational density of states": "Vibrational density of states. Power spectrum of the mass-weighted velocities; "
    "its integral is 1.",
}


def write_html(report: Report, path: str | Path) -> None:
    """Writes a check as one HTML file, in one step.

    Raises:
        InputError: if matplotlib is not installed.
        OSError: if the file cannot be written.
    """
    figures = {}
    for title, draw in check_panels(report).items():
        figure = new_figure(4.8, 3.1)
        axes = figure.subplots()
        draw(axes)
        if axes.axison:  # otherwise there was nothing to draw, and a verdict says why
            figures[_CAPTIONS[title]] = figure
    name = Path(report.trajectory.source).name
    page = render_html(
        f"Check of {name}", report.summary, report.verdicts, figures, report.trajectory, broken_bond(report)
    )
    write_atomically(Path(path), holding(page))


def render_html(
    title: str,
    summary: str,
    verdicts: Sequence[Verdict],
    figures: Mapping[str, "Figure"],
    trajectory: Trajectory | None,
    highlight: Highlight | None,
) -> str:
    """A page of verdicts, plots and a trajectory; all text in it is escaped.

    Args:
        title: of the page.
        summary: of the verdicts, in one line; coloured as passed if it starts with "passed" and nothing failed.
        verdicts: failed ones are shown first, those not judged last.
        figures: caption, whose first sentence is the name of the figure and which says what there is to see, to
            the figure; may be empty.
        trajectory: shown in 3D, at most `viewer.MOST_FRAMES` of its frames, or None.
        highlight: what to point at in the trajectory, or None.

    Raises:
        InputError: if `highlight` is given without the trajectory or is outside of it.
    """
    if highlight is not None and trajectory is None:
        raise InputError("`highlight` needs the trajectory that it points into, got `trajectory` None; give both")
    style, sign, _ = _PASSED if summary.startswith("passed") else _NOT_JUDGED
    if any(verdict.passed is False for verdict in verdicts):
        style, sign, _ = _FAILED
    shown = trajectory is not None and len(trajectory.numbers) <= MOST_ATOMS
    return Template(read_text("report.html")).substitute(
        title=escape(title),
        style=read_text("report.css"),
        system="" if trajectory is None else escape(_system(trajectory)),
        state=style,
        summary=f'<span aria-hidden="true">{sign}</span> {escape(summary)}',
        highlight=_pointer(highlight, shown),
        verdicts=_verdict_section(verdicts),
        figures=_figure_section(figures),
        viewer=viewer_section(trajectory, highlight) if trajectory is not None and shown else "",
        provenance=_provenance(trajectory, shown),
        script=viewer_script(trajectory, highlight) if trajectory is not None and shown else "",
    )


def broken_bond(report: Report) -> Highlight | None:
    """Where the first bond breaks, and which, or None."""
    found = report.bonds
    if found.broken is None or found.first_frame is None:
        return None
    first, second = (int(atom) for atom in re.findall(r"\d+", found.broken))  # such as C1-H4: `bonds.bond_name`
    times = report.trajectory.times_fs
    when = "" if times is None else f" ({times[found.first_frame] / 1000.0:.4g} ps)"
    text = (
        f"The bond {found.broken} breaks in frame {found.first_frame}{when}: it is {found.broken_length:.2f} Å long "
        f"instead of {found.broken_reference:.2f} Å."
    )
    return Highlight(found.first_frame, (first, second), text)


def _system(trajectory: Trajectory) -> str:
    formula = Symbols(trajectory.numbers).get_chemical_formula()
    parts = [formula, _count(len(trajectory.numbers), "atom"), _count(len(trajectory), "frame")]
    if trajectory.times_fs is not None and len(trajectory) > 1:
        parts.append(f"{np.ptp(trajectory.times_fs) / 1000.0:.4g} ps")
    if trajectory.ensemble is not None:
        parts.append("NVE" if trajectory.ensemble == "nve" else trajectory.ensemble)
    return " · ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _pointer(highlight: Highlight | None, shown: bool) -> str:
    if highlight is None:
        return ""
    link = ' <a href="#viewer" data-jump>Show it</a>' if shown else ""
    return f'<p class="highlight">{escape(highlight.text)}{link}</p>'


def _verdict_section(verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return ""
    groups = [_FAILED, _PASSED, _NOT_JUDGED, _MEASURED]
    order = sorted(verdicts, key=lambda verdict: groups.index(_outcome(verdict)))
    items = "\n".join(_verdict_item(verdict) for verdict in order)
    return (
        '<section aria-labelledby="verdicts">\n<h2 id="verdicts">Verdicts</h2>\n'
        f'<ul class="verdicts">\n{items}\n</ul>\n</section>'
    )


def _outcome(verdict: Verdict) -> tuple[str, str, str]:
    """How a verdict looks: what failed, passed, should be judged and was not, or is only a figure."""
    if verdict.passed is not None:
        return _PASSED if verdict.passed else _FAILED
    return _MEASURED if verdict.threshold is None and verdict.value is not None else _NOT_JUDGED


def _verdict_item(verdict: Verdict) -> str:
    style, sign, word = _outcome(verdict)
    unit = f' <span class="unit">{escape(verdict.unit)}</span>' if verdict.unit else ""
    figure = "" if verdict.value is None else f'<p class="value">{escape(verdict.text)}{unit}</p>'
    if verdict.threshold is not None:
        figure += _share(verdict) + f'<p class="threshold">threshold {verdict.threshold:g}{unit}</p>'
    return (
        f'<li class="{style}"><p class="outcome"><span aria-hidden="true">{sign}</span> {word}</p>'
        f'<div><h3>{escape(verdict.name)}</h3><p class="why">{escape(verdict.explanation)}</p></div>'
        f"<div>{figure}</div></li>"
    )


def _share(verdict: Verdict) -> str:
    """A bar whose middle is the threshold; it says nothing that the figures beside it do not."""
    if verdict.value is None or not verdict.threshold or verdict.threshold < 0:
        return ""
    percent = 50.0 * min(abs(verdict.value) / verdict.threshold, 2.0)
    return f'<div class="share" aria-hidden="true"><i style="width:{percent:.1f}%"></i></div>'


def _figure_section(figures: Mapping[str, "Figure"]) -> str:
    if not figures:
        return ""
    items = []
    for index, (caption, figure) in enumerate(figures.items()):
        name, _, rest = caption.partition(". ")
        text = f"<strong>{escape(name)}.</strong> {escape(rest)}" if rest else escape(caption)
        items.append(f'<figure>{_svg(figure, index)}<figcaption id="caption-{index}">{text}</figcaption></figure>')
    body = "\n".join(items)
    return (
        '<section aria-labelledby="plots">\n<h2 id="plots">Plots</h2>\n'
        f'<div class="figures">\n{body}\n</div>\n</section>'
    )


def _svg(figure: "Figure", index: int) -> str:
    """The figure as an element of a page: its ids are its own, its caption is its text alternative."""
    file = StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\1figure{index}-", text)
    return text.replace("<svg", f'<svg role="img" aria-labelledby="caption-{index}"', 1)


def _provenance(trajectory: Trajectory | None, shown: bool) -> str:
    entries = {}
    if trajectory is not None:
        entries = {"File": trajectory.source, "System": _system(trajectory)}
        if trajectory.notes:
            entries["Notes"] = "; ".join(trajectory.notes)
        if not shown:
            entries["3D view"] = f"left out: more than {MOST_ATOMS} atoms"
    packages = ", ".join(f"{name} {version(name)}" for name in ("ggnn-ff", "numpy", "ase", "matplotlib"))
    entries["Versions"] = f"{packages}, Python {platform.python_version()}"
    entries["Date"] = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z")
    items = [f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in entries.items()]
    if shown:
        licence = escape(read_text("3Dmol-LICENSE.txt"))
        items.append(
            f"<dt>3D view</dt><dd>3Dmol.js<details><summary>Licence</summary><pre>{licence}</pre></details></dd>"
        )
    return "\n".join(items)
