"""The study of a search: trials in a database that several workers share, claimed one by one, never lost.

Each worker asks Optuna for a trial, trains it (:mod:`stages.trials.trial`) and tells the result. A trial whose worker
was killed is asked for again with the same parameters, and its training resumes from its state: on this machine at
once, because the lock of a dead process is free; on others when its heartbeat has stopped for some minutes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from stages.project.command import Interrupted
from stages.project.home import home
from stages.project.locks import file_lock, try_file_lock
from stages.project.params import Params
from stages.project.params_search import Search
from stages.project.redaction import in_one_line, redacted
from stages.registry.journal import JOURNALS, RunJournal, journal_lock
from stages.search.space import Space
from stages.trials.trial import Ending, Trial
from yolov7.errors import ConfigError, TrainingError

log = logging.getLogger(__name__)

FOLDER = Path(".state/search")
DATABASE = "studies.db"
_HEARTBEAT, _GRACE = 60, 240
"""Seconds between two signs of life of a trial, and after which a silent one is given to another worker."""
_FAILURES = 3
"""Failed trainings in a row that stop the search."""
DONE = (TrialState.COMPLETE, TrialState.PRUNED)
ERROR, PLACE, SURPLUS, DEFAULT, RUN = "error", "place", "surplus", "default", "mlflow_run"
"""Attributes of trials and of the study: message of a failed training; machine, folder and process of the worker; one
trial too many; the trial of the present setting; the MLflow run."""
REPEATED = "retry_history"
"""Optuna's own attribute of a repeated trial: the numbers of those before it."""


class SurplusError(Exception):
    """Another worker has taken the last trial."""


@contextmanager
def answering(address: str) -> Iterator[None]:
    """Turn the errors of the database into :class:`ConfigError` of one line."""
    where = f"params.yaml: search.storage: {redacted(address)}"
    try:
        yield
    except (ArgumentError, NoSuchModuleError) as error:
        raise ConfigError(f"{where}: not the address of a database ({in_one_line(error, 200)})") from None
    except ImportError as error:
        raise ConfigError(f"{where}: its driver is not installed ({in_one_line(error, 200)})") from None
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = in_one_line(redacted(error.__cause__ or error), 200)
        raise ConfigError(f"{where}: the database does not answer ({cause})") from None


def address_of(search: Search) -> str:
    """The database: that of `search.storage`, or a file of the project's home."""
    if search.storage:
        return search.storage
    path = home() / FOLDER / DATABASE
    path.parent.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{path}"


def storage_at(address: str) -> optuna.storages.RDBStorage:
    """The open database. Raises :class:`ConfigError` where it does not answer."""
    # Heartbeats are an experimental feature of Optuna; without them other machines could not tell a dead worker.
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    seconds = {"timeout": 60} if address.startswith("sqlite") else {"connect_timeout": 10}
    # The first to come creates the tables: two at once would collide.
    with answering(address), file_lock(home() / FOLDER / "storage.lock"):
        return optuna.storages.RDBStorage(
            address,
            engine_kwargs={"connect_args": seconds if address.startswith(("sqlite", "postgresql")) else {}},
            heartbeat_interval=_HEARTBEAT,
            grace_period=_GRACE,
            heartbeat_stale_trial_callback=repeat,
        )


class ParameterStudy:
    """The study of the present params.yaml and data; another setting or space is another study."""

    def __init__(self, params: Params, data_sha256: str):
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # its words for a stop are those for a failure
        self.params, self.search, self.space = params, params.search, Space.of(params)
        identity = {**self.space.identity(data_sha256), "sampler_seed": self.search.seed}
        self.key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
        self.name = f"{self.space.variant}-{self.key}"
        self._address = address_of(self.search)
        storage = storage_at(self._address)
        with answering(self._address):
            self.study = optuna.create_study(
                study_name=self.name,
                storage=storage,
                direction="maximize",
                pruner=_pruner(self.search),
                load_if_exists=True,
            )
            self._begin()

    # State -----------------------------------------------------------------------------------------------------------

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, those that were given up for a repetition included."""
        return self.study.get_trials(deepcopy=False)

    @property
    def finished(self) -> list[FrozenTrial]:
        """Trials that count: complete, pruned, or failed in training."""
        return [trial for trial in self.trials if trial.state in DONE or ERROR in trial.user_attrs]

    @property
    def best(self) -> FrozenTrial | None:
        """The complete trial of highest AP, the first of equals."""
        complete = [trial for trial in self.trials if trial.state is TrialState.COMPLETE]
        return max(complete, key=lambda trial: (trial.value or 0.0, -trial.number), default=None)

    @property
    def default(self) -> FrozenTrial | None:
        """The complete trial of the present setting, if the space contains it."""
        found = [t for t in self.trials if t.state is TrialState.COMPLETE and t.user_attrs.get(DEFAULT)]
        return found[0] if found else None

    def _begin(self) -> None:
        """Give the present setting as the first trial: the best one is then never worse."""
        with file_lock(FOLDER / f"{self.name}.claim"):
            if not self.trials:
                self._give_default()

    def _give_default(self) -> None:
        outside = self.space.outside
        if outside:
            log.warning("not compared with the present setting: the space does not contain its %s", ", ".join(outside))
            return
        attributes = {DEFAULT: True}
        self.study.enqueue_trial(self.space.default, user_attrs=attributes, skip_if_exists=True)

    # A trial ---------------------------------------------------------------------------------------------------------

    def work(self, device: torch.device) -> FrozenTrial | None:
        """Train one trial; None if there is none left. Raises :class:`Interrupted` after a request to stop, and
        :class:`TrainingError` after several trainings in a row that failed."""
        with answering(self._address), ExitStack() as own, ExitStack() as claim:
            # One worker of this folder at a time looks, asks and draws; it lets go when its trial is its own.
            claim.enter_context(file_lock(FOLDER / f"{self.name}.claim"))
            self._repeat_lost()
            if len(self._counted(self.trials)) >= self.search.trials:
                return None
            self.study.sampler = _sampler(self.search, len(self.trials))
            objective = partial(self._objective, device, own, claim)
            self.study.optimize(objective, n_trials=1, catch=(TrainingError, SurplusError))
            mine = next(trial for trial in reversed(self.trials) if trial.user_attrs.get(PLACE) == _place(own=True))
        if SURPLUS in mine.user_attrs:
            return None
        if mine.state is TrialState.FAIL:
            self._check_failures(mine)
        return mine

    def _counted(self, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        """Trials that are finished or being trained; one that waits to be repeated is not counted twice."""
        return [t for t in trials if t.state in (*DONE, TrialState.RUNNING) or ERROR in t.user_attrs]

    def _objective(self, device: torch.device, own: ExitStack, claim: ExitStack, trial: optuna.Trial) -> float:
        # Until Optuna has the result: a trial that is running without its lock is lost.
        own.enter_context(try_file_lock(self._lock(trial.number)))
        trial.set_user_attr(PLACE, _place(own=True))
        values = {name: _suggested(trial, name, kind) for name, kind in self.space.distributions().items()}
        claim.close()
        earlier = [one for one in self.trials if one.number < trial.number]
        if len(self._counted(earlier)) >= self.search.trials:  # a worker of another folder was faster
            trial.set_user_attr(SURPLUS, True)
            raise SurplusError
        try:
            return self._train(trial, values, device)
        except TrainingError as error:
            trial.set_user_attr(ERROR, in_one_line(error, 300))
            log.warning("trial %d failed: %s", trial.number, in_one_line(error, 300))
            raise

    def _train(self, trial: optuna.Trial, values: dict[str, Any], device: torch.device) -> float:
        def watch(epoch: int, ap: float) -> bool:
            trial.report(ap, epoch)
            return trial.should_prune()

        shown = ", ".join(f"{key} {value}" for key, value in self.space.written(values).items())
        log.info("trial %d of %d: %s", trial.number, self.search.trials, shown)
        tags = {"search": self.name, "trial": trial.number}
        parent = self.parent_run()
        ending, result = Trial.of(self.space.variant, self.space.train(values)).run(
            self.params,
            device,
            name=f"{self.space.variant} trial {trial.number}",
            tags=tags | ({"mlflow.parentRunId": parent} if parent else {}),
            watch=watch,
        )
        if ending is Ending.INTERRUPTED:
            raise Interrupted(f"trial {trial.number} of {self.name} is saved; the same command resumes it")
        if result is None:
            raise optuna.TrialPruned
        return result.ap

    def _check_failures(self, mine: FrozenTrial) -> None:
        finished = self.finished[-_FAILURES:]
        if len(finished) == _FAILURES and all(ERROR in trial.user_attrs for trial in finished):
            raise TrainingError(f"{_FAILURES} trials in a row have failed, the last with: {mine.user_attrs[ERROR]}")

    # Lost trials -----------------------------------------------------------------------------------------------------

    def _lock(self, number: int) -> Path:
        return FOLDER / f"{self.name}-{number}.lock"

    def _repeat_lost(self) -> None:
        """Have the trials of dead workers of this folder asked for again; those of others wait for their heartbeat.

        Trials that were interrupted on request are repeated as well.
        """
        again = {number for trial in self.trials for number in trial.system_attrs.get(REPEATED, ())}
        for trial in self.trials:
            if trial.user_attrs.get(PLACE, "").rpartition("#")[0] != _place() or trial.number in again:
                continue
            stopped = trial.state is TrialState.FAIL and not {ERROR, SURPLUS} & trial.user_attrs.keys()
            if stopped or (trial.state is TrialState.RUNNING and self._give_up(trial.number)):
                log.info("trial %d was stopped before its end; it is repeated and resumes", trial.number)
                repeat(self.study, trial)

    def _give_up(self, number: int) -> bool:
        """End a trial whose worker is dead; False if it lives, or has just finished."""
        with try_file_lock(self._lock(number)) as free:
            if not free or self.trials[number].state is not TrialState.RUNNING:
                return False
            self.study.tell(number, state=TrialState.FAIL)
            return True

    # MLflow ----------------------------------------------------------------------------------------------------------

    @contextmanager
    def journal(self) -> Iterator[RunJournal]:
        """The journal of the run that the trials are nested in."""
        path = JOURNALS / f"search-{self.name}.jsonl"
        with journal_lock(path):
            name = f"search {self.space.variant}"
            yield RunJournal(path, experiment=self.params.registry.experiment, run_name=name)

    def parent_run(self) -> str | None:
        """Id of that run; None while MLflow is away, and trials are then found by their tag `search` alone."""
        known = self.study.user_attrs.get(RUN)
        if known:
            return str(known)
        with self.journal() as journal:
            if journal.empty:
                settings = self.search.model_dump(mode="json", exclude={"storage"})
                journal.parameters({"variant": self.space.variant, **settings})
                journal.tags({"search": self.name})
            journal.deliver(force=True)
            if journal.run_id is not None:
                self.study.set_user_attr(RUN, journal.run_id)
            return journal.run_id


def repeat(study: optuna.Study, trial: FrozenTrial) -> None:
    """Have a trial asked for again, with the same parameters."""
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={key: value for key, value in trial.user_attrs.items() if key != PLACE},
            system_attrs={**trial.system_attrs, REPEATED: [*trial.system_attrs.get(REPEATED, ()), trial.number]},
        )
    )


def _suggested(trial: optuna.Trial, name: str, kind: BaseDistribution) -> Any:
    if isinstance(kind, CategoricalDistribution):
        return trial.suggest_categorical(name, kind.choices)
    assert isinstance(kind, IntDistribution | FloatDistribution)
    suggest = trial.suggest_int if isinstance(kind, IntDistribution) else trial.suggest_float
    return suggest(name, kind.low, kind.high, log=kind.log)  # type: ignore[arg-type]


def _place(*, own: bool = False) -> str:
    """Machine and folder; `own`: with the process, too."""
    place = f"{socket.gethostname()}:{Path.cwd()}"
    return f"{place}#{os.getpid()}" if own else place


def _pruner(search: Search) -> optuna.pruners.BasePruner:
    if search.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=search.epochs // 3)
    if search.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(
            min_resource=max(1, search.epochs // 9), max_resource=search.epochs, reduction_factor=3
        )
    return optuna.pruners.NopPruner()


def _sampler(search: Search, trials: int) -> optuna.samplers.BaseSampler:
    """Each process draws one trial, so the number of trials is part of its seed."""
    startup = min(10, max(3, search.trials // 3))
    return optuna.samplers.TPESampler(seed=search.seed * 100_003 + trials, n_startup_trials=startup)
