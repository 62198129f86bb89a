"""Trainings and simulations in a process of their own that is killed by SIGKILL at a chosen point."""

import multiprocessing
import os
import signal

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["ggnn_ff.training.fit", "ggnn_ff.dynamics.run"])


def run_to_death(function, *arguments):
    """Runs `function` in another process, which has to end by SIGKILL."""
    process = _context.Process(target=function, args=arguments)
    process.start()
    process.join(120)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError("the process did not reach the point where it was to be killed")
    assert process.exitcode == -signal.SIGKILL, f"exit status {process.exitcode}"


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def fit_killed_in_epoch(config, epoch, batch):
    """Dies in the middle of an epoch."""
    from ggnn_ff.training.fit import fit
    from ggnn_ff.training.module import TrainingModule

    step = TrainingModule.training_step

    def deadly(module, *arguments):
        if module.current_epoch == epoch and arguments[1] == batch:
            die()
        return step(module, *arguments)

    TrainingModule.training_step = deadly
    fit(config, progress=False)


def fit_killed_at_checkpoint(config, number):
    """Dies before the checkpoint file of this number, counted from 0, is written."""
    from ggnn_ff.training.checkpoints import CheckpointFiles
    from ggnn_ff.training.fit import fit

    save, written = CheckpointFiles.save_checkpoint, []

    def deadly(files, checkpoint, path, storage_options=None):
        if len(written) == number:
            die()
        written.append(path)
        save(files, checkpoint, path)

    CheckpointFiles.save_checkpoint = deadly
    fit(config, progress=False)


def fit_killed_before_export(config):
    """Dies when all epochs are done but the potential is not written."""
    from ggnn_ff.training import fit as module

    module.write_potential = lambda *arguments: die()
    module.fit(config, progress=False)


def md_killed_at(step, potential, atoms, folder, settings):
    """Dies when the row of `step` is written but not yet safe; checkpoints are made every 7 logged steps."""
    from ggnn_ff.dynamics.run import run_md
    from ggnn_ff.dynamics.run_files import RunFiles

    if isinstance(potential, dict):
        from ggnn_ff.export import load_potential

        potential = load_potential(**potential)
    log, checkpoint, count = RunFiles.log, RunFiles.checkpoint, [0]

    def deadly(files, now, *arguments, **keywords):
        log(files, now, *arguments, **keywords)
        if now == step:
            files.energies.flush()
            files.frames.flush()
            die()

    def rarely(files, now, integrator, force=False):
        count[0] += 1
        checkpoint(files, now, integrator, force=count[0] % 7 == 0)

    RunFiles.log, RunFiles.checkpoint = deadly, rarely
    run_md(potential, atoms, folder, settings, progress=False)


def compare_killed_in_training(settings, models, folder, sizes, model, epoch):
    """A comparison that dies while `model` trains."""
    from rich.console import Console

    from ggnn_ff.comparison.run import compare
    from ggnn_ff.training.module import TrainingModule

    step = TrainingModule.training_step

    def deadly(module, *arguments):
        if module.config.model.name == model and module.current_epoch == epoch:
            die()
        return step(module, *arguments)

    TrainingModule.training_step = deadly
    compare(settings, models, folder, Console(quiet=True), sizes)
