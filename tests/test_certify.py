"""The battery: right potentials pass all of it, broken ones fail where they are broken, and files carry the result."""

import json
import shutil

import ase.io
import numpy as np
import pytest
from ase.calculators.calculator import CalculationFailed, all_changes
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from broken_calculators import DirectForces, Indexed, Morse, NeverRebuilt, cluster
from scipy.spatial.distance import pdist
from test_check import without_origin
from test_html import Page, browse, needs_browser
from typer.testing import CliRunner

from ggnn_ff import cli
from ggnn_ff.certify import Protocol, certification, certify
from ggnn_ff.data.readers import read_frames
from ggnn_ff.dynamics.run import run_md
from ggnn_ff.dynamics.settings import make_settings
from ggnn_ff.errors import InputError
from ggnn_ff.export import export_torchscript, load_potential, write_certification
from ggnn_ff.hosts.ase import GGNNCalculator
from ggnn_ff.md17_stability import md17_stability, stability_table, whole_molecules
from ggnn_ff.subjects import Subject, calculator_subject, potential_subject

SHORT = Protocol(
    temperature=50.0, equilibration_ps=0.05, scaling_ps=0.1, nve_ps=0.2, hot_temperature=60.0, hot_ps=0.1, seeds=2
)


def subject(kind):
    return Subject(kind.__name__, kind(), kind(), kind())


def failed(certificate):
    return {verdict.name for verdict in certificate.verdicts if verdict.passed is False}


def test_right_potential_passes_and_broken_ones_fail_where_they_are_broken(tmp_path):
    right = certify(subject(Morse), cluster(), tmp_path / "right", SHORT)
    assert right.passed, failed(right)
    sections = {"symmetry", "gradient", "vibrations", "integrator", "constant energy", "stability"}
    assert set(right.sections) == sections
    assert without_origin(right.verdicts) == set()
    direct = certify(subject(DirectForces), cluster(), tmp_path / "direct", SHORT)
    assert {"forces against energy differences", "work around closed loops"} <= failed(direct)
    assert not failed(direct) & ({"time reversibility"} | {verdict.name for verdict in direct.sections["symmetry"]})
    numbered = certify(subject(Indexed), cluster(), tmp_path / "numbered", SHORT)
    assert any(name.startswith("permutation") for name in failed(numbered))
    stale = certify(subject(NeverRebuilt), cluster(), tmp_path / "stale", SHORT)
    assert {"history: energy", "history: forces"} <= failed(stale)
    assert not {"history: energy", "history: forces"} & (failed(direct) | failed(numbered))


class TornBeyond(Morse):
    """Cannot be evaluated where atoms have moved further than a vibration takes them."""

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        if np.abs(np.sort(pdist(self.atoms.positions)) - np.sort(pdist(cluster().positions))).max() > 0.02:
            raise CalculationFailed("no convergence")


def test_a_calculator_that_gives_up_fails_its_checks_and_still_gets_a_certificate(tmp_path):
    found = certify(subject(TornBeyond), cluster(), tmp_path, SHORT)
    assert not found.passed
    given_up = [verdict for verdict in found.verdicts if "no convergence" in verdict.explanation]
    assert given_up
    assert all(verdict.passed is False for verdict in given_up)
    assert json.loads((tmp_path / "certificate.json").read_text())["passed"] is False


def labelled(frames, path):
    for frame in frames:
        frame.calc = SinglePointCalculator(frame, energy=0.0, forces=np.zeros_like(frame.positions))
    ase.io.write(path, frames, format="extxyz")
    return path


def test_data_that_cannot_be_a_reference_are_for_errors_only(tmp_path):
    said, names = {}, {}
    for kind, element in (("same", "Be"), ("other", "Li")):
        frames = [cluster(), cluster()]
        for frame in frames:
            frame.symbols[-1] = element
        said[kind] = []
        data = labelled(frames, tmp_path / f"{kind}.xyz")
        found = certify(subject(Morse), cluster(), tmp_path / kind, SHORT, data, say=said[kind].append)
        names[kind] = {verdict.name for verdict in found.verdicts}
    assert any("are not compared with those of the data" in text for text in said["other"])
    assert not any("are not compared" in text for text in said["same"])
    assert names["same"] - names["other"] >= {"hot runs: distance distribution error"}
    assert "force error" in names["other"]


def test_reference_with_a_bond_that_is_gone_is_refused_before_any_run(tmp_path, trained_folder):
    loaded = load_potential(trained_folder)
    frames = [loaded.contract.example.atoms() for _ in range(2)]
    data = read_frames(labelled(frames, tmp_path / "whole.xyz"))
    assert len(whole_molecules(data, frames[0])) == 2
    frames[1].positions[-1] += 1.0
    with pytest.raises(InputError, match="must keep its bonds"):
        md17_stability(loaded, frames[0], labelled(frames, tmp_path / "torn.xyz"), tmp_path / "runs", "springs")
    assert not (tmp_path / "runs").exists()


class NotANumber(Morse):
    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results = {name: np.asarray(value) * np.nan for name, value in self.results.items()}


def test_nothing_but_nan_fails_and_gets_a_certificate(tmp_path, trained_folder):
    found = certify(subject(NotANumber), cluster(), tmp_path / "calculator", SHORT)
    assert {"equilibration", "time to collapse"} <= failed(found)
    spoiled = load_potential(trained_folder)
    spoiled.module.potential.scale.fill_(float("nan"))
    calculators = (GGNNCalculator(spoiled, compile=False) for _ in range(2))
    potential = Subject("spoiled", *calculators, spoiled)
    found = certify(potential, spoiled.contract.example.atoms(), tmp_path / "potential", SHORT)
    assert {"equilibration", "time to collapse"} <= failed(found)


def test_hot_runs_are_checked_as_trajectories(tmp_path):
    found = certify(subject(Morse), cluster(), tmp_path, SHORT)
    names = {verdict.name for verdict in found.sections["stability"]}
    assert {"time to collapse", "hot runs: bonds formed"} <= names
    assert len({verdict.name for verdict in found.verdicts}) == len(found.verdicts)
    assert [report.trajectory.ensemble for report in found.hot] == ["langevin"] * SHORT.seeds
    assert certification(found).protocol["hot_ps"] == SHORT.hot_ps


def test_frequencies_are_compared_with_those_of_the_method_that_made_the_labels(tmp_path):
    def certificate_of(reference):
        return certify(subject(Morse), cluster(), tmp_path, SHORT, reference=reference)

    def vibrations(reference):
        return {verdict.name: verdict.passed for verdict in certificate_of(reference).sections["vibrations"]}

    assert vibrations(None) == {"imaginary frequencies": True}
    assert without_origin(certificate_of(Morse()).sections["vibrations"]) == set()
    names = ("imaginary frequencies", "mean frequency deviation", "largest frequency deviation")
    assert vibrations(Morse()) == dict.fromkeys(names, True)
    assert vibrations(LennardJones(sigma=2.3, epsilon=1.0)) == dict(zip(names, (True, False, False), strict=True))


def test_certificate_is_written_and_a_second_call_goes_on(tmp_path):
    first = certify(subject(Morse), cluster(), tmp_path, SHORT)
    written = json.loads((tmp_path / "certificate.json").read_text())
    assert written["passed"] is first.passed
    assert written["sections"]["gradient"][0]["value"] == first.sections["gradient"][0].value
    assert "Certificate of Morse" in (tmp_path / "certificate.html").read_text()
    before = (tmp_path / "nve" / "energies.csv").read_bytes()
    again = certify(subject(Morse), cluster(), tmp_path, SHORT)
    assert (tmp_path / "nve" / "energies.csv").read_bytes() == before
    assert again.sections == first.sections
    certify(subject(Morse), cluster(), tmp_path, SHORT.model_copy(update={"nve_ps": 0.3}))
    longer = (tmp_path / "nve" / "energies.csv").read_bytes()
    assert longer.startswith(before)
    assert len(longer) > len(before)
    other = cluster()
    other.rattle(0.01, seed=1)
    with pytest.raises(InputError, match="holds another run"):
        certify(subject(Morse), other, tmp_path, SHORT)


def test_a_certificate_without_a_judged_drift_does_not_pass(tmp_path):
    found = certify(subject(Morse), cluster(), tmp_path, SHORT.model_copy(update={"nve_ps": 0.01}))
    assert not failed(found)
    assert not found.passed
    assert found.summary.startswith("inconclusive")


def test_a_calculator_with_other_parameters_is_another(tmp_path):
    near, far = (LennardJones(sigma=2.3, epsilon=epsilon) for epsilon in (1.0, 1.1))
    settings = make_settings(temperature=50.0, steps=10)
    run_md(near, cluster(), tmp_path, settings, progress=False)
    run_md(near, cluster(), tmp_path, settings, progress=False)
    with pytest.raises(InputError, match="holds another run"):
        run_md(far, cluster(), tmp_path, settings, progress=False)


PLOTS = """<script>addEventListener("load", () => {
  const plots = [...document.querySelectorAll("figure svg")].map((plot) => plot.getBoundingClientRect().width);
  const loaded = performance.getEntriesByType("resource").filter((entry) => !entry.name.startsWith("data:")).length;
  document.body.dataset.found = JSON.stringify({ plots, loaded });
});</script></body>"""


@needs_browser
def test_certificate_opens_in_a_browser_without_loading_anything(tmp_path):
    certify(subject(Morse), cluster(), tmp_path, SHORT)
    page = (tmp_path / "certificate.html").read_text()
    dom = browse(page.replace("</body>", PLOTS), tmp_path, "--dump-dom")
    found = json.loads(next(a["data-found"] for a in Page(dom).named("body")).replace("&quot;", '"'))
    assert len(found["plots"]) >= 2
    assert min(found["plots"]) > 100
    assert found["loaded"] == 0


@pytest.mark.parametrize("form", ["folder", "file"])
def test_potential_carries_its_certification(tmp_path, trained_folder, form):
    folder = shutil.copytree(trained_folder, tmp_path / "potential")
    path = folder
    if form == "file":
        path = tmp_path / "potential.pt"
        export_torchscript(folder, path)
    loaded = load_potential(path)
    run_md(loaded, loaded.contract.example.atoms(), tmp_path / "run", make_settings(steps=10), progress=False)
    found = certify(subject(Morse), cluster(), tmp_path / "certificate", SHORT)  # of something else, which is quick
    write_certification(path, certification(found))
    certified = load_potential(path)
    assert certified.contract.certification.passed
    assert certified.contract.certification.structure == cluster().get_chemical_formula()
    assert certified.contract.identity == loaded.contract.identity
    run_md(certified, loaded.contract.example.atoms(), tmp_path / "run", make_settings(steps=20), progress=False)
    shown = CliRunner().invoke(cli.app, ["info", str(path)]).output
    assert "certification.energy drift" in shown
    assert loaded.contract.certification is None


def test_potential_goes_through_the_battery(tmp_path, trained_folder):
    loaded = load_potential(trained_folder)
    one = potential_subject(trained_folder)
    found = certify(one, loaded.contract.example.atoms(), tmp_path, SHORT)
    assert not {verdict.name for verdict in found.sections["symmetry"] if not verdict.passed and verdict.value}
    assert all(verdict.passed for verdict in found.sections["gradient"])
    assert (tmp_path / "hot" / "replica-001" / "run.json").exists()


def test_protocol_of_the_benchmark_tells_whole_runs_from_broken_ones(tmp_path, trained_folder, monkeypatch):
    loaded = load_potential(trained_folder)
    atoms = loaded.contract.example.atoms()
    frame = atoms.copy()
    frame.calc = SinglePointCalculator(frame, energy=0.0, forces=np.zeros_like(frame.positions))
    ase.io.write(tmp_path / "reference.xyz", [frame, frame], format="extxyz")
    files = tmp_path / "reference.xyz", tmp_path / "runs"
    run = {"name": "springs", "picoseconds": 0.2, "seeds": 2, "progress": False}
    row = md17_stability(loaded, atoms, *files, **run)
    assert row.stability_ps == (0.2, 0.2)
    assert row.stopped == (None, None)
    assert 0.0 < max(row.distribution_errors) < 2.0
    of_calculator = md17_stability(GGNNCalculator(loaded), atoms, files[0], tmp_path / "calculator", **run)
    assert "| springs | - | - | 0 ± 0 |" in stability_table([of_calculator])
    assert of_calculator.stability_ps == row.stability_ps
    np.testing.assert_allclose(of_calculator.distribution_errors, row.distribution_errors, atol=0.02)
    settings = json.loads((tmp_path / "runs" / "replica-001" / "run.json").read_text())["settings"]
    assert (settings["ensemble"], settings["temperature"], settings["timestep"]) == ("nose-hoover", 500.0, 0.5)
    monkeypatch.setattr("ggnn_ff.stability.topology.LONGEST_DEVIATION", 0.05)  # angstrom; these bonds vibrate further
    assert max(md17_stability(loaded, atoms, *files, **run).stability_ps) < 0.2
    assert "| springs | painn | " in stability_table([row])
    monkeypatch.undo()
    otherwise = atoms[::-1]  # the same molecule with its atoms in another order
    frame = otherwise.copy()
    frame.calc = SinglePointCalculator(frame, energy=0.0, forces=np.zeros_like(frame.positions))
    ase.io.write(tmp_path / "otherwise.xyz", [frame, frame], format="extxyz")
    assert md17_stability(loaded, atoms, tmp_path / "otherwise.xyz", files[1], **run) == row
    with pytest.raises(InputError, match="`reference_data` must hold the molecule of `structure`"):
        md17_stability(loaded, atoms[:3], *files, "springs")


def test_what_cannot_be_certified_is_named(tmp_path):
    with pytest.raises(InputError, match=r"`calculator` must be gfn2-xtb, or .* or mace:FILE, got 'emt'"):
        calculator_subject("emt")
    with pytest.raises(InputError, match="exists after mace:"):
        calculator_subject(f"mace:{tmp_path / 'none.model'}")
    result = CliRunner().invoke(cli.app, ["certify", "--structure", "ethanol", "-o", str(tmp_path)])
    assert "one of the two" in str(result.exception)
    for arguments, problem in (
        (["--protocol", "md22"], "must be md17-stability"),
        (["--protocol", "md17-stability"], "`reference_data` must be given"),
        (["--protocol", "md17-stability", "--hot", "50"], "`hot` must be left out"),
        (
            ["--protocol", "md17-stability", "--reference-calculator", "gfn2-xtb"],
            "`reference_calculator` must be left",
        ),
    ):
        given = ["certify", "ethanol-pbe", "--structure", "ethanol", "-o", str(tmp_path), *arguments]
        assert problem in str(CliRunner().invoke(cli.app, given).exception)
