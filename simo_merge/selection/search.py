"""Search by Optuna, in one process or in several that share a study."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simo_merge.errors import SimoError
from simo_merge.selection.candidates import Candidate, check_values

if TYPE_CHECKING:
    import optuna

_QUESTION, _OPTIONS, _SECONDS, _SCORE = "question", "options", "seconds", "score"


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; integers where both ends are.

    log: uniform in the logarithm.

    Raises:
        SimoError: ends that are not finite or not in order, or not positive where the logarithm is taken.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise SimoError(f"a range needs two finite ends, the lower one first, got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise SimoError(f"a logarithmic range begins above 0, got {self.low}")


@dataclass(frozen=True)
class Search:
    """Tries options one by one, each where the earlier ones promise most (Optuna's TPE sampler).

    A study that stopped between two candidates goes on as if it had not. Several processes, on one machine or on many,
    search together when they name the same storage and study; each returns all candidates.

    space: option -> values to choose from, or a `Range`.
    trials: candidates of the whole study, over all processes; those that are under way when the last one is finished
        are finished too.
    storage: where the study is kept, as Optuna writes it: "sqlite:///study.db". None: in memory.
    study: its name there.
    seed: of the draws.

    Raises:
        SimoError: no options, an option without values, no trials, or a storage without the name of a study.
    """

    space: Mapping[str, Sequence[Any] | Range]
    trials: int = 20
    storage: str | None = None
    study: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_values({name: [v] if isinstance(v, Range) else v for name, v in self.space.items()})
        if self.trials < 1:
            raise SimoError(f"a search takes 1 trial or more, got {self.trials}")
        if self.storage is not None and not self.study:
            raise SimoError(f"the storage {self.storage} may hold many studies; name this one (study=...)")

    def run(
        self, evaluate: Callable[[Mapping[str, Any]], Candidate], question: Mapping[str, str] | None = None
    ) -> list[Candidate]:
        """Evaluate candidates until the study has enough, and return those of all processes.

        Args:
            evaluate: options -> the candidate with its score.
            question: what the study is about; a stored one must be about the same.

        Raises:
            SimoError: Optuna is not installed, or the stored study is about something else.
        """
        study = self._open(question or {})
        while sum(_SECONDS in t.user_attrs for t in study.get_trials(deepcopy=False)) < self.trials:
            trial = study.ask()
            # The sampler's draws depend on the seed and the trial's number: processes differ, and a study that is
            # taken up again draws what it would have drawn.
            study.sampler = _optuna().samplers.TPESampler(seed=(self.seed * 1_000_003 + trial.number) % 2**32)
            self._try(study, trial, evaluate)
        done = [t for t in study.get_trials(deepcopy=False) if _SECONDS in t.user_attrs]
        return [
            Candidate(json.loads(t.user_attrs[_OPTIONS]), float(t.user_attrs[_SCORE]), t.user_attrs[_SECONDS])
            for t in done
        ]

    def _open(self, question: Mapping[str, str]) -> optuna.Study:
        study = self._create()
        asked = {**question, "space": ", ".join(f"{name} {values}" for name, values in self.space.items())}
        stored = study.user_attrs.get(_QUESTION)
        if stored is None and not study.get_trials(deepcopy=False):
            study.set_user_attr(_QUESTION, asked)
            return study
        differ = [key for key in asked if (stored or {}).get(key) != asked[key]]
        if differ:
            there = (stored or {}).get(differ[0], "nothing")
            raise SimoError(
                f"the study {self.study!r} in {self.storage} is about something else: its {', '.join(differ)} differ "
                f"({there} there, {asked[differ[0]]} here); take another name"
            )
        return study

    def _create(self) -> optuna.Study:
        """The study, new or stored; processes that make a database's tables at the same moment try again."""
        library, database_errors = _optuna(), _database_errors()
        pauses = [0.2, 0.4, 0.8, 1.6]  # seconds
        while True:
            try:
                study: optuna.Study = library.create_study(
                    storage=self.storage, study_name=self.study, direction="maximize", load_if_exists=True
                )
                return study
            except database_errors:
                if not pauses:
                    raise
                time.sleep(pauses.pop(0))

    def _try(
        self, study: optuna.Study, trial: optuna.Trial, evaluate: Callable[[Mapping[str, Any]], Candidate]
    ) -> None:
        failed = _optuna().trial.TrialState.FAIL
        try:
            candidate = evaluate({name: self._suggest(trial, name) for name in self.space})
        except BaseException:  # whatever it was: the study must not believe that the trial goes on
            study.tell(trial, state=failed)
            raise
        trial.set_user_attr(_OPTIONS, json.dumps(dict(candidate.options)))
        trial.set_user_attr(_SCORE, repr(candidate.score))
        trial.set_user_attr(_SECONDS, candidate.seconds)
        if math.isfinite(candidate.score):
            study.tell(trial, candidate.score)
        else:
            study.tell(trial, state=failed)

    def _suggest(self, trial: optuna.Trial, name: str) -> Any:
        values = self.space[name]
        if not isinstance(values, Range):
            return trial.suggest_categorical(name, list(values))
        if isinstance(values.low, int) and isinstance(values.high, int):
            return trial.suggest_int(name, values.low, values.high, log=values.log)
        return trial.suggest_float(name, values.low, values.high, log=values.log)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise SimoError("searching needs Optuna; install it: pip install 'simo_merge[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # what happened is logged here
    return optuna


def _database_errors() -> tuple[type[Exception], ...]:
    import sqlalchemy.exc  # Optuna brings it

    return (sqlalchemy.exc.SQLAlchemyError,)
