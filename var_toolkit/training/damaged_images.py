"""Damaged images in a run of several processes: if one cannot read an image, all stop, or all log it."""

from collections.abc import Callable, Iterator

from var_toolkit.images import ImageFileError
from var_toolkit.processes import Team
from var_toolkit.training.batches import Batch
from var_toolkit.training.draws import Draws

Steps = Iterator[tuple[Draws, Batch]]


def read_together(steps: Steps, team: Team, note: Callable[[int, list[str]], None]) -> Steps:
    """The steps of a run, of which every process gets as many as the others.

    If one cannot read an image, all raise the same ImageFileError before that step: no process waits for one that
    has gone. `note` is called with the step and with the damaged images that others replaced in it for the first time.
    """
    known: set[str] = set()
    while True:
        found, problem, fresh = None, None, []
        try:
            found = next(steps, None)
        except ImageFileError as error:
            problem = str(error)
        if found is not None:
            fresh = sorted(set(found[1].damaged) - known)
        if team.any(problem is not None or bool(fresh)):
            problems, names = zip(*team.gather((problem, fresh)), strict=True)
            told = next(filter(None, problems), None)
            if told is not None:
                raise ImageFileError(told)
            together = sorted({name for part in names for name in part} - known)
            known.update(together)
            if found is not None and together:
                note(found[0].step + 1, together)
        if found is None:
            return
        yield found
