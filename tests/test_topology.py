"""Made trajectories in which a named bond breaks, a bond forms, fragments leave, or a run collapses."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from ggnn_ff.bonds import bonds
from ggnn_ff.errors import InputError
from ggnn_ff.stability import blocks
from ggnn_ff.stability.frames import Trajectory
from ggnn_ff.stability.topology import (
    Event,
    broken_bonds,
    collapse_times,
    collapse_verdict,
    evaporated_fragments,
    formed_bonds,
    same_atoms,
    topology_verdicts,
)

INTERVAL_FS = 100.0


def still(atoms, n_frames=20, cell=None):
    """Frames of a structure with thermal noise."""
    noise = np.random.default_rng(0).normal(size=(n_frames, len(atoms), 3)) * 0.02
    return Trajectory(
        source="made",
        numbers=atoms.numbers,
        masses=atoms.get_masses(),
        positions=atoms.positions + noise,
        cell=np.zeros((n_frames, 3, 3)) if cell is None else np.broadcast_to(np.eye(3) * cell, (n_frames, 3, 3)),
        pbc=np.full(3, cell is not None),
        times_fs=np.arange(n_frames) * INTERVAL_FS,
    )


ETHANOL = molecule("CH3CH2OH")  # C0 C1 O2 H3 (on O2) H4 H5 (on C0) H6 H7 H8 (on C1)


def torn(frame=12, hydrogen=3, centre=2, distance=1.0, n_frames=20):
    """Ethanol that loses a hydrogen: it goes away from its neighbour in one frame, and stays away."""
    frames = still(ETHANOL, n_frames)
    away = ETHANOL.positions[hydrogen] - ETHANOL.positions[centre]
    frames.positions[frame:, hydrogen] += distance * away / np.linalg.norm(away)
    return frames


def verdicts(frames):
    return {v.name: v for v in topology_verdicts(frames)}


def test_molecule_that_stays_whole_passes():
    found = verdicts(still(ETHANOL))
    assert [(v.value, v.passed) for v in found.values()] == [(0, True)] * 3


def test_broken_bond_is_named_with_its_frame_and_time():
    assert broken_bonds(torn()) == [Event("O2-H3", 12, 1200.0)]
    broken = verdicts(torn())["bonds broken"]
    assert (broken.value, broken.passed) == (1, False)
    assert broken.explanation.endswith("O2-H3 at frame 12, 1.2 ps")
    assert broken_bonds(replace(torn(), times_fs=None)) == [Event("O2-H3", 12, None)]
    assert broken_bonds(torn(distance=0.4)) == []


def test_bonds_are_named_in_the_order_of_breaking(monkeypatch):
    frames = torn(15)
    frames.positions[7:, 4] += 5.0
    frames.positions[9:, 4] -= 5.0  # it comes back, which does not undo that it broke
    expected = [Event("C0-H4", 7, 700.0), Event("O2-H3", 15, 1500.0)]
    hydrogen = np.flatnonzero(ETHANOL.get_distances(4, [0, 1]) < 1.3)[0]
    expected[0] = replace(expected[0], name=f"C{hydrogen}-H4")
    assert broken_bonds(frames) == expected
    monkeypatch.setattr(blocks, "CHUNK_VALUES", 3 * 8)  # three frames at once
    assert broken_bonds(frames) == expected


def test_formed_bond_is_named_once():
    pair = Atoms("OHOH", [[0, 0, 0], [0.97, 0, 0], [9, 0, 0], [9.97, 0, 0]])
    frames = still(pair)
    frames.positions[8:, 2] += [-6.7, 0, 0]  # O2 leaves H3 and comes next to H1, to 1.33, then 1.0 angstrom
    frames.positions[11:, 2] += [-0.33, 0, 0]
    assert formed_bonds(frames) == [Event("H1-O2", 11, 1100.0)]
    assert broken_bonds(frames) == [Event("O2-H3", 8, 800.0)]
    assert verdicts(frames)["bonds formed"].passed is False
    assert verdicts(still(pair))["bonds formed"].passed is True


def tetrahalide(symbol, length):
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)
    return Atoms(f"C{symbol}4", np.vstack([np.zeros(3), length * corners]))


@pytest.mark.parametrize(("symbol", "length"), [("Cl", 1.77), ("Br", 1.94), ("I", 2.15)])
def test_heavy_neighbours_of_one_atom_are_not_bonded_however_they_shake(symbol, length):
    frames = still(tetrahalide(symbol, length), 200)
    frames.positions[:] = frames.positions[0] + 2 * (frames.positions - frames.positions[0])  # by 0.04 angstrom
    for positions in frames.positions:
        assert bonds(frames.numbers, positions, frames.cell[0], frames.pbc).tolist() == [[0, k] for k in range(1, 5)]
    assert [(v.value, v.passed) for v in verdicts(frames).values()] == [(0, True)] * 3
    frames.positions[7:, 1] = frames.positions[7:, 2] + 2.3 * np.array([1.0, 0.0, 0.0])  # about the bond of Br2
    assert formed_bonds(frames)[0] == Event(f"{symbol}1-{symbol}2", 7, 700.0)


def test_halogens_that_touch_have_not_formed_a_bond():
    """Two I2 at the distance of their crystal, 3.5 angstrom, come closer by as much as they shake."""
    frames = still(Atoms("I4", [[0, 0, 0], [0, 0, 2.67], [3.65, 0, 2.67], [3.65, 0, 5.34]]), 100)
    frames.positions[50:, 2:, 0] -= 0.15
    assert formed_bonds(frames) == []


@pytest.mark.parametrize("symbol", ["Na", "K", "Mg", "Ca"])
def test_water_may_leave_a_cation(symbol):
    frames = still(Atoms(symbol) + molecule("H2O"))
    frames.positions[:, 0] = [0.0, 0.0, 2.3]  # beside the oxygen atom
    frames.positions[8:, 0, 2] += 1.5
    assert [(v.value, v.passed) for v in verdicts(frames).values()] == [(0, True)] * 3
    frames.positions[:] = frames.positions[::-1].copy()  # and come
    assert [(v.value, v.passed) for v in verdicts(frames).values()] == [(0, True)] * 3


def test_bonds_across_the_faces_of_a_cell_are_not_broken_by_wrapping():
    frames = still(molecule("H2O"), cell=20.0)
    fractions = frames.positions / 20.0
    wrapped = replace(frames, positions=20.0 * (fractions - np.floor(fractions)))
    assert np.ptp(wrapped.positions) > 15
    found = verdicts(wrapped)
    assert [(v.value, v.passed) for v in found.values()] == [(0, True)] * 3
    wrapped.positions[6:, 2, 2] += 8.0
    assert [event.frame for event in broken_bonds(wrapped)] == [6]


def cluster(n_molecules=4):
    """Water molecules, 3 angstrom apart in a row."""
    atoms = Atoms()
    for index in range(n_molecules):
        water = molecule("H2O")
        water.positions[:, 0] += 3.0 * index
        atoms += water
    return atoms


@pytest.mark.parametrize("cell", [None, 40.0])
def test_fragments_that_leave_are_named(cell):
    """A molecule evaporates, then a hydrogen atom of the next; wherever the cell puts them."""
    frames = still(cluster(), 40, cell)
    frames.positions[10:, 9:12, 0] += np.linspace(0, 20, 30)[:, None]
    frames.positions[25:, 8, 1] += 15.0
    found = evaporated_fragments(frames)
    assert [event.name for event in found] == ["H2O (atoms 9, 10, 11)", "H (atoms 8)"]
    gap = np.linalg.norm(frames.positions[:, 9:12, None] - frames.positions[:, None, :9], axis=-1).min(axis=(1, 2))
    assert found[0].frame == int((gap >= 6.0).argmax())
    assert found[1] == Event("H (atoms 8)", 25, 2500.0)
    assert verdicts(frames)["evaporated fragments"].value == 2
    assert verdicts(frames)["bonds broken"].value == 1


def test_fragments_that_leave_together_are_two_and_are_not_named_again():
    frames = still(cluster(5), 40)
    frames.positions[5:, 9:] += [0.0, 30.0, 0.0]
    frames.positions[20:, 12] += [0.0, 30.0, 0.0]  # then one of them breaks
    assert evaporated_fragments(frames) == [
        Event("H2O (atoms 9, 10, 11)", 5, 500.0),
        Event("H2O (atoms 12, 13, 14)", 5, 500.0),
    ]


def test_evaporation_does_not_depend_on_how_many_frames_are_held(monkeypatch):
    frames = still(cluster(), 40)
    frames.positions[17:, :3] += 20.0
    frames.positions[39:, 9:] -= 20.0
    whole = evaporated_fragments(frames)
    monkeypatch.setattr(blocks, "CHUNK_VALUES", 3 * 12**2)
    assert evaporated_fragments(frames) == whole
    assert whole == [Event("H2O (atoms 0, 1, 2)", 17, 1700.0), Event("H2O (atoms 9, 10, 11)", 39, 3900.0)]


def test_where_nothing_can_leave_nothing_is_measured():
    dense = verdicts(still(cluster(), cell=11.0))["evaporated fragments"]
    assert (dense.value, dense.passed) == (None, None)
    apart = cluster()
    apart.positions[9:] += 30.0
    assert "in parts already" in verdicts(still(apart))["evaporated fragments"].explanation
    assert all(v.value is None for v in topology_verdicts(still(ETHANOL, 1)))


def test_many_events_are_counted_but_not_all_listed():
    frames = still(ETHANOL)
    frames.positions[3:] *= 3.0
    broken = verdicts(frames)["bonds broken"]
    assert broken.value == 8
    assert broken.explanation.endswith("and 3 more")


def test_time_to_collapse_is_the_mean_over_runs_with_its_error():
    runs = [torn(5), torn(11), still(ETHANOL, 20)]
    result = collapse_times(runs)
    assert result.times_ps == pytest.approx((0.5, 1.1, 1.9))
    assert result.collapsed == (True, True, False)
    assert result.mean_ps == pytest.approx(3.5 / 3)
    assert result.error_ps == pytest.approx(np.std([0.5, 1.1, 1.9], ddof=1) / np.sqrt(3))
    verdict = collapse_verdict(result)
    assert verdict.passed is False
    assert "of which 1 never collapsed" in verdict.explanation
    assert collapse_verdict(collapse_times([still(ETHANOL)] * 2)).passed is True


def test_collapse_is_judged_against_the_reference_and_a_stopped_run_collapsed():
    short = ETHANOL.copy()
    short.positions[3] += 0.2 * (short.positions[2] - short.positions[3])
    run = torn(12, distance=0.45)
    assert collapse_times([run]).collapsed == (False,)
    assert collapse_times([run], still(short)).times_ps == pytest.approx((1.2,))
    assert collapse_times([run]).error_ps is None
    stopped = collapse_times([replace(still(ETHANOL), stopped="stopped: forces are not finite")])
    assert (stopped.times_ps, stopped.collapsed) == ((pytest.approx(1.9),), (True,))


def test_structure_without_bonds_has_no_time_to_collapse():
    """A metal that is torn apart, which bonds do not tell; a run of it that was stopped did collapse."""
    crystal = still(bulk("Cu", cubic=True) * 2)
    crystal.positions[10:] *= 3.0
    verdict = collapse_verdict(collapse_times([crystal] * 2))
    assert (verdict.value, verdict.passed) == (None, None)
    assert "not applicable: no bonds" in verdict.explanation
    assert verdicts(crystal)["bonds broken"].passed is None
    stopped = replace(crystal, stopped="stopped: forces are not finite")
    assert collapse_verdict(collapse_times([crystal, stopped])).passed is False


def test_wrong_input_is_said():
    with pytest.raises(InputError, match="at least one trajectory"):
        collapse_times([])
    assert "no times" in collapse_verdict(collapse_times([replace(torn(), times_fs=None)])).explanation
    with pytest.raises(InputError, match="must have the 9 atoms"):
        collapse_times([torn()], still(molecule("H2O")))


def test_atoms_are_told_by_elements_and_bonds():
    def bonded(positions):
        return bonds(ethanol.numbers, positions, ethanol.cell.array, ethanol.pbc)

    ethanol = molecule("CH3CH2OH")
    order = np.arange(9)
    order[[3, 5]] = order[[5, 3]]  # the hydrogen of the hydroxyl group and another one: the same elements in order
    other = ethanol[order]
    found = same_atoms(ethanol, other)
    assert np.array_equal(ethanol.numbers, other.numbers[found])
    assert np.array_equal(bonded(other.positions[found]), bonded(ethanol.positions))
    assert not np.array_equal(found, np.arange(9))
    assert np.array_equal(same_atoms(ethanol, ethanol), np.arange(9))
    assert same_atoms(ethanol, molecule("CH3OCH3")) is None
