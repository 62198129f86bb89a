"""Thermostats for many replicas at once: arrays (S, N, 3), in ASE's units, energies in eV."""

import numpy as np

CHAIN_LENGTH = 3
RELAXATION_STEPS = 20
"""Period of a Nose-Hoover thermostat in time steps: 10 fs at 0.5 fs, as short as a vibration, so that it is coupled."""

_CUBE_ROOT_OF_TWO = 2.0 ** (1.0 / 3.0)
_SUZUKI_YOSHIDA = (
    1.0 / (2.0 - _CUBE_ROOT_OF_TWO),
    -_CUBE_ROOT_OF_TWO / (2.0 - _CUBE_ROOT_OF_TWO),
    1.0 / (2.0 - _CUBE_ROOT_OF_TWO),
)


def nose_hoover_half_step(
    momenta: np.ndarray,
    masses: np.ndarray,
    chain: np.ndarray,
    timestep: float,
    thermal_energy: float,
    degrees_of_freedom: int,
) -> np.ndarray:
    """Half a step of a Nose-Hoover chain for each replica; Martyna and others, Mol. Phys. 87, 1117 (1996), section 4.

    Args:
        momenta: (S, N, 3).
        masses: (N, 1), dalton.
        chain: (S, 2, CHAIN_LENGTH), positions and velocities of the thermostats; changed in place.
        timestep: of the whole step.
        thermal_energy: k T.
        degrees_of_freedom: that share the kinetic energy.

    Returns:
        The scaled momenta.
    """
    period = RELAXATION_STEPS * timestep
    inertia = np.full(CHAIN_LENGTH, thermal_energy * period**2)
    inertia[0] *= degrees_of_freedom
    twice_kinetic = np.einsum("snk,snk->s", momenta, momenta / masses)  # (S,)
    position, velocity = chain[:, 0], chain[:, 1]
    scale = np.ones(len(momenta))
    last = CHAIN_LENGTH - 1

    def push(k: int, by: float) -> None:
        """A quarter of the substep for the velocity of thermostat k, which the next one slows down."""
        source = twice_kinetic - degrees_of_freedom * thermal_energy
        if k > 0:
            source = inertia[k - 1] * velocity[:, k - 1] ** 2 - thermal_energy
        slow = np.exp(-0.5 * by * velocity[:, k + 1]) if k < last else 1.0
        velocity[:, k] = (velocity[:, k] * slow + by * source / inertia[k]) * slow

    for weight in _SUZUKI_YOSHIDA:
        substep = 0.5 * timestep * weight
        for k in range(last, -1, -1):
            push(k, 0.5 * substep)
        factor = np.exp(-substep * velocity[:, 0])
        scale *= factor
        twice_kinetic *= factor**2
        position += substep * velocity
        for k in range(CHAIN_LENGTH):
            push(k, 0.5 * substep)
    return momenta * scale[:, None, None]


def nose_hoover_energy(
    chain: np.ndarray, timestep: float, thermal_energy: float, degrees_of_freedom: int
) -> np.ndarray:
    """(S,) energy of the thermostats, eV: with that of the system it is conserved."""
    inertia = np.full(CHAIN_LENGTH, thermal_energy * (RELAXATION_STEPS * timestep) ** 2)
    inertia[0] *= degrees_of_freedom
    many = np.ones(CHAIN_LENGTH)
    many[0] = degrees_of_freedom
    return 0.5 * chain[:, 1] ** 2 @ inertia + thermal_energy * chain[:, 0] @ many


def ornstein_uhlenbeck_step(
    momenta: np.ndarray, masses: np.ndarray, noise: np.ndarray, friction_times_step: float, thermal_energy: float
) -> np.ndarray:
    """Friction and random forces of a whole step, exactly; the O of BAOAB (Leimkuhler and Matthews, arXiv 1203.5428).

    Args:
        momenta: (S, N, 3).
        masses: (N, 1), dalton.
        noise: (S, N, 3), standard normal.
        friction_times_step: without unit.
        thermal_energy: k T.
    """
    kept = np.exp(-friction_times_step)
    return kept * momenta + np.sqrt((1.0 - kept**2) * thermal_energy * masses) * noise
