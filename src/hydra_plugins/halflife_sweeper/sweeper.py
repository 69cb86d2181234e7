"""The sweeper and where its configuration lies; what it needs is imported once a sweep starts."""

from __future__ import annotations

import gc
import json
import queue
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeAlias

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, ListConfig, OmegaConf

if TYPE_CHECKING:
    from collections.abc import Generator

    from hydra_plugins.halflife_sweeper._results import App, Brought
    from hydra_plugins.halflife_sweeper._space import Node
    from hydra_plugins.halflife_sweeper._study import Job, Plan
    from hydra_plugins.halflife_sweeper._trial import Outcome, Where

Steps: TypeAlias = "Generator[tuple[list[str], str], Any, Outcome]"
INTERRUPTED = 130
"""The exit code that shells give Ctrl-C."""


class HalflifeSearchPath(SearchPathPlugin):
    """Makes `hydra/sweeper=halflife` known to every app."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("halflife_sweeper", "pkg://hydra_plugins.halflife_sweeper.conf")


class HalflifeSweeper(Sweeper):
    """Asks Optuna for trials, has a launcher run them, and tells Optuna what came of each.

    The arguments are the keys of conf/hydra/sweeper/halflife.yaml.
    """

    def __init__(
        self,
        sampler: DictConfig,
        pruner: DictConfig,
        study_name: str | None,
        storage: Any,
        direction: Any,
        n_trials: int,
        n_jobs: int,
        max_failures: int | None,
        seeds: Any,
        seed_key: str,
        params: DictConfig,
        trial: int | None,
    ) -> None:
        self.sampler, self.pruner, self.storage = sampler, pruner, storage
        self.study_name, self.direction, self.params = study_name, direction, params
        self.n_trials, self.n_jobs, self.max_failures = n_trials, n_jobs, max_failures
        self.seeds, self.seed_key = seeds, seed_key

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra."""
        self.context, self.task, self.cfg = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> Any:
        """Run what is left of the study.

        Args:
            arguments: overrides of the command line.

        Returns:
            The value of the best trial, or its values where there are several objectives.
        """
        from halflife.cli import stop
        from halflife.errors import InputError

        try:
            return self._sweep(arguments)
        except InputError as error:
            stop(str(error))

    def _sweep(self, arguments: list[str]) -> Any:
        from hydra.core.plugins import Plugins

        from hydra_plugins.halflife_sweeper._results import App
        from hydra_plugins.halflife_sweeper._space import check_composes, described, read_space
        from hydra_plugins.halflife_sweeper._study import LOST, lost
        from hydra_plugins.halflife_sweeper._trial import TrialTask

        loader = self.context.config_loader
        self._check()
        params = OmegaConf.to_container(self.params, resolve=True)
        nodes = read_space(params, arguments, loader)  # type: ignore[arg-type]
        check_composes(nodes, loader, self.cfg)
        sweep_dir = Path(self.cfg.hydra.sweep.dir).absolute()
        where = self._where(sweep_dir)
        sampler = self._sampler(nodes)
        search, fixed = self._fixed(nodes)
        app = App(self.cfg.hydra.job.config_name, loader, search, self.seed_key, self._again(sweep_dir))
        about = {"space": described(nodes), "overrides": fixed, "seeds": self.seeds}
        plan = self._plan(where, sampler, nodes, about, sweep_dir)
        reports = self.seeds is None and len(self.directions) == 1
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.context,
            task_function=TrialTask(self.task, where, reports),
            config=self.cfg,
        )
        try:
            return self._loop(plan, app)
        except LOST as error:  # between two trials
            raise lost(error) from error
        finally:
            plan.workers.leave()

    def _check(self) -> None:
        """Raise the InputError for a setting out of range, or two that do not go together."""
        from halflife.errors import InputError, choice, whole

        parts = {"sweeper.sampler": self.sampler, "sweeper.pruner": self.pruner}
        for name, given in {**parts, "launcher": self.cfg.hydra.launcher}.items():
            if not isinstance(given, DictConfig):
                raise InputError(
                    f"hydra.{name} must be a mapping with a _target_, got {given}; "
                    f"choose one with a slash, as hydra/{name.replace('.', '/')}={given}"
                )
        if not isinstance(self.storage, str | DictConfig | None):
            raise InputError(
                f"hydra.sweeper.storage must be a file, a URL or memory, got {self.storage}; "
                "leave it out for a file in the sweep's directory"
            )
        if not isinstance(self.params, DictConfig):
            raise InputError(
                f"hydra.sweeper.params must be a mapping of keys to what is searched, got {self.params}; "
                "write a search as KEY=interval(…) beside the other overrides"
            )
        self.n_trials = whole("hydra.sweeper.n_trials", self.n_trials, "trials", at_least=1)
        self.n_jobs = whole("hydra.sweeper.n_jobs", self.n_jobs, "trials at a time", at_least=1)
        if self.max_failures is not None:
            whole("hydra.sweeper.max_failures", self.max_failures, "trials", at_least=0)
        listed = isinstance(self.direction, list | ListConfig)
        self.directions = tuple(str(d) for d in self.direction) if listed else (str(self.direction),)
        for direction in self.directions or ("",):
            choice("hydra.sweeper.direction", direction, ["maximize", "minimize"])
        if self.seeds is not None:
            if not isinstance(self.seeds, list | ListConfig) or len(set(self.seeds)) < max(
                2, len(self.seeds)
            ):
                raise InputError(
                    f"hydra.sweeper.seeds must be a list of two or more different seeds, got {self.seeds}; "
                    "write [1,2,3], or override the seed itself"
                )
            self.seeds = [whole("hydra.sweeper.seeds", s, "integers", at_least=0) for s in self.seeds]
        prunes = not str(self.pruner.get("_target_")).endswith("NopPruner")
        if prunes and len(self.directions) > 1:
            raise InputError(
                "hydra.sweeper.pruner must be none with several objectives, which Optuna cannot prune by, "
                f"got {self.pruner.get('_target_')}; add hydra/sweeper/pruner=none"
            )
        target = str(self.cfg.hydra.launcher.get("_target_"))
        # joblib's pool and Ray's start are not to be entered from several threads: jobs go out in rounds
        self.threads = self.n_jobs > 1 and not target.endswith(("JoblibLauncher", "RayLauncher"))
        self.in_process = target.endswith("BasicLauncher")
        if self.in_process:
            if self.n_jobs > 1:
                raise InputError(
                    f"hydra.sweeper.n_jobs must be 1 with the basic launcher (trials), got {self.n_jobs}"
                    "; add hydra/launcher=joblib, or start the same command again beside this one"
                )
        elif self.storage == "memory":
            raise InputError(
                "hydra.sweeper.storage must be reached from other processes with this launcher, got memory; "
                "leave it out for a file in the sweep's directory"
            )

    def _where(self, sweep_dir: Path) -> Where:
        """The study, as any process finds it."""
        from hydra_plugins.halflife_sweeper._trial import Where

        storage = self.storage
        if isinstance(storage, DictConfig):
            storage = OmegaConf.to_container(storage, resolve=True)
        elif storage is None:
            storage = str(sweep_dir / "study.log")
        elif storage.startswith("sqlite:///") and not storage.startswith("sqlite:////"):
            storage = f"sqlite:///{Path(storage.removeprefix('sqlite:///')).absolute()}"
        elif "://" not in storage and storage != "memory":
            storage = str(Path(storage).absolute())
        pruner = OmegaConf.to_container(self.pruner, resolve=True)
        return Where(
            json.dumps(storage), self.study_name or sweep_dir.name, json.dumps(pruner), self.directions
        )

    def _sampler(self, nodes: list[Node]) -> Any:
        """The sampler; a grid is told the space, which bounds the number of trials."""
        from hydra.errors import InstantiationException
        from hydra.utils import instantiate

        from halflife.errors import InputError
        from hydra_plugins.halflife_sweeper._space import Fixed
        from hydra_plugins.halflife_sweeper._trial import first_line

        extra: dict[str, Any] = {}
        if str(self.sampler.get("_target_")).endswith("GridSampler"):
            extra["search_space"] = {n.key: n.grid() for n in nodes if not isinstance(n, Fixed)}
            size = 1
            for values in extra["search_space"].values():
                size *= len(values)
            self.n_trials = min(self.n_trials, size)
        for name, config, given in (("sampler", self.sampler, extra), ("pruner", self.pruner, {})):
            try:
                made = instantiate(config, **given, _convert_="all")
            except InstantiationException as error:
                cause = error.__cause__ or error
                raise InputError(
                    f"hydra.sweeper.{name} must be one of Optuna's, got {config.get('_target_')} "
                    f"({first_line(cause)}); correct it"
                ) from error
            if name == "sampler":
                sampler = made
        return sampler

    def _fixed(self, nodes: list[Node]) -> tuple[dict[str, Brought], list[str]]:
        """Groups that say how to search, and the overrides of every trial that say what to run."""
        from hydra_plugins.halflife_sweeper._results import search_groups
        from hydra_plugins.halflife_sweeper._space import Fixed

        fixed = sorted(n.text for n in nodes if isinstance(n, Fixed))
        groups = search_groups(fixed, self.cfg.hydra.job.config_name, self.context.config_loader)
        return groups, [text for text in fixed if re.split(r"[.=]", text.lstrip("+~"))[0] not in groups]

    def _plan(
        self, where: Where, sampler: Any, nodes: list[Node], about: dict[str, Any], sweep_dir: Path
    ) -> Plan:
        """The study, opened or begun."""
        from hydra_plugins.halflife_sweeper._study import Plan, open_study
        from hydra_plugins.halflife_sweeper._trial import replaced

        if "://" in where.storage:
            open_study(where)  # a server that cannot be reached leaves no directory behind
        sweep_dir.mkdir(parents=True, exist_ok=True)
        plan = Plan(where, sampler, nodes, about, self.n_trials, sweep_dir)
        OmegaConf.save(self.cfg, sweep_dir / "multirun.yaml")
        server = "://" in where.storage and not where.storage.startswith('"sqlite:')
        given = OmegaConf.to_container(self.cfg.hydra.sweeper, resolve=False)
        # unresolved: a password that is taken from the environment stays off the disk
        kept = given["storage"] if server else json.loads(where.storage)  # type: ignore[index,call-overload]
        about_it = {"study_name": where.study_name, "storage": kept}
        with replaced(sweep_dir / "study.json") as own:
            own.write_text(json.dumps(about_it, indent=2) + "\n")
        return plan

    def _again(self, sweep_dir: Path) -> str:
        """The command that runs best.yaml, from where this one was given."""
        here = Path.cwd()
        place = sweep_dir.relative_to(here) if sweep_dir.is_relative_to(here) else sweep_dir
        return f"python {shlex.quote(sys.argv[0])} --config-dir {shlex.quote(str(place))} --config-name best"

    def _loop(self, plan: Plan, app: App) -> Any:
        """Ask, launch, tell, until all is done, too much has failed, or Ctrl-C."""
        from halflife.errors import InputError
        from hydra_plugins.halflife_sweeper._results import ranked, write_results
        from hydra_plugins.halflife_sweeper._trial import Outcome

        running: dict[int, Job] = {}
        ended: queue.SimpleQueue[tuple[Job, Outcome]] = queue.SimpleQueue()
        wanted: dict[int, tuple[Job, Steps, list[str], str]] = {}
        failures, allowed = 0, sys.maxsize if self.max_failures is None else self.max_failures

        def go_on(job: Job, steps: Steps, last: Outcome | None) -> None:
            """What a trial wants next, or what came of it."""
            try:
                wanted[job.trial.number] = (job, steps, *steps.send(last))
            except StopIteration as end:
                ended.put((job, end.value))

        def alone(job: Job) -> None:
            """In a thread, which waits for the launcher's processes."""
            steps, outcome = self._steps(job), None
            while True:
                try:
                    extra, subdir = steps.send(outcome)
                except StopIteration as end:
                    ended.put((job, end.value))
                    return
                (outcome,) = self._launch([(job, extra, subdir)])

        last = ""
        self._say_where_it_stands(plan)
        try:
            while True:
                while len(running) < self.n_jobs and failures <= allowed:
                    job = plan.ask()
                    if job is None:
                        break
                    running[job.trial.number] = job
                    if self.threads:
                        Thread(target=alone, args=(job,), daemon=True).start()
                    else:
                        go_on(job, self._steps(job), None)
                if not running:
                    break
                if wanted:
                    asked = list(wanted.values())
                    wanted.clear()
                    outcomes = self._launch([(job, extra, subdir) for job, _, extra, subdir in asked])
                    for (job, steps, _, _), outcome in zip(asked, outcomes, strict=True):
                        go_on(job, steps, outcome)
                while self.threads or not ended.empty():
                    job, outcome = ended.get()
                    plan.tell(job.trial.number, outcome)
                    del running[job.trial.number]
                    failures += outcome.state == "failed"
                    last = outcome.reason or last
                    write_results(plan.study, plan.sweep_dir, app)
                    if self.threads:
                        break
                gc.collect()  # models and trainers hold themselves in circles
                if gc.get_freeze_count() == 0:
                    gc.freeze()  # what is imported by now need not be looked through each time
        except KeyboardInterrupt:
            for number in running:
                plan.tell(number, Outcome("interrupted", reason="interrupted by Ctrl-C"))
            write_results(plan.study, plan.sweep_dir, app)
            self._print_table(plan, app)
            print(f"stopped; {self._how_to_go_on()}", file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None
        self._print_table(plan, app)
        if failures > allowed:
            raise InputError(
                f"hydra.sweeper.max_failures must be at least the number of trials that fail, got {allowed} "
                f"with {failures}, the last because: {last}; mend the cause and "
                f"{self._how_to_go_on()}"
            )
        best = ranked(plan.study)
        if not best and failures:
            raise InputError(
                f"the app must finish one trial at least, got {failures} that failed, the last because: "
                f"{last}; mend the cause and {self._how_to_go_on()}"
            )
        return None if not best else best[0].value if len(self.directions) == 1 else best[0].values

    def _say_where_it_stands(self, plan: Plan) -> None:
        """One line about the study that this sweep goes on with or begins."""
        from hydra_plugins.halflife_sweeper._study import counts

        trials = plan.study.get_trials(deepcopy=False)
        done = sum(t.state.is_finished() and counts(t) for t in trials)
        verb = "goes on with" if done else "begins with"
        print(
            f"Study {plan.study.study_name} {verb} {done} of {self.n_trials} trials done · {plan.sweep_dir}"
        )

    def _how_to_go_on(self) -> str:
        """The end of a sentence."""
        raw = OmegaConf.to_container(self.cfg.hydra.sweep, resolve=False)
        again = "run the same command again to go on"
        if "${now:" in str(raw):
            return f"{again}, with hydra.sweep.dir={self.cfg.hydra.sweep.dir}"
        return again

    def _print_table(self, plan: Plan, app: App) -> None:
        """The last table, and how to run the best trial again; summary.txt holds both as well."""
        from rich.console import Console

        from hydra_plugins.halflife_sweeper._results import again, last_table, ranked
        from hydra_plugins.halflife_sweeper._trial import replaced

        table, best = last_table(plan.study, self.n_trials), ranked(plan.study)
        with replaced(plan.sweep_dir / "summary.txt") as own, own.open("w") as file:
            plain = Console(file=file, width=110, color_system=None)
            shown = Console() if sys.stdout.isatty() else Console(width=110, color_system=None)
            for console in (plain, shown):
                console.print(table)
                if best:  # in one piece, to be copied
                    console.print(f"The best one again: {again(best[0], app)}", soft_wrap=True, markup=False)

    def _steps(self, job: Job) -> Steps:
        """What a trial has run, one after another: a job, or one for each seed until the pruner ends it.

        Yields overrides and a directory, is sent what came of them, and returns what came of the trial.
        """
        from hydra_plugins.halflife_sweeper._study import LOST
        from hydra_plugins.halflife_sweeper._trial import Outcome

        trial, number = job.trial, job.trial.number
        if self.seeds is None:
            only: Outcome = yield [], str(number)
            return only
        found: dict[str, list[float]] = dict(trial.user_attrs.get("seeds", {}))  # of an interrupted try
        for done, seed in enumerate(self.seeds, 1):
            if str(seed) not in found:
                outcome = yield [f"{self.seed_key}={seed}"], f"{number}/seed-{seed}"
                if outcome.state != "complete":
                    return replace(outcome, reason=f"{outcome.reason} (seed {seed})")
                found[str(seed)] = outcome.values
            try:
                trial.set_user_attr("seeds", found)
                worse = self._is_worse(trial, list(found.values())[:done])
            except LOST:  # told when the result is recorded
                worse = False
            if worse and done < len(self.seeds):
                pruned = Outcome("pruned", reason=f"pruned after {done} of {len(self.seeds)} seeds")
                pruned.write(job.directory)
                return pruned
        means = [sum(column) / len(column) for column in zip(*found.values(), strict=True)]
        complete = Outcome("complete", values=means)
        complete.write(job.directory)
        return complete

    def _is_worse(self, trial: Any, found: list[list[float]]) -> bool:
        """Report the latest seed and ask the pruner.

        Wilcoxon's test pairs the seeds of two trials; the other pruners compare means over the seeds so far.
        """
        if len(self.directions) > 1:
            return False
        values = [v for (v,) in found]
        paired = str(self.pruner.get("_target_")).endswith("WilcoxonPruner")
        trial.report(values[-1] if paired else sum(values) / len(values), step=len(values))
        return bool(trial.should_prune())

    def _launch(self, asked: list[tuple[Job, list[str], str]]) -> list[Outcome]:
        """Have the launcher run jobs, and read what each left in its directory.

        Args:
            asked: of each job its trial, overrides of its own, and its directory in the sweep's.
        """
        from hydra.core.override_parser.types import Quote, QuotedString
        from hydra.errors import HydraException

        from hydra_plugins.halflife_sweeper._trial import NOTE, Outcome, first_line

        batch = []
        for job, extra, subdir in asked:
            sweep_dir = job.directory.parent
            (sweep_dir / subdir / NOTE).unlink(missing_ok=True)
            own = [
                f"hydra.sweep.dir={QuotedString(str(sweep_dir), Quote.single).with_quotes()}",
                f"hydra.sweep.subdir={subdir}",
                f"hydra.sweeper.trial={job.trial.number}",
            ]
            batch.append([*job.overrides, *extra, *own])
        otherwise = Outcome("died", reason="its job ended without a result")
        try:
            self.launcher.launch(batch, initial_job_idx=asked[0][0].trial.number)
        except Exception as error:
            # what the task itself raises is in its directory; this is a job that did not start, or that died
            reason = f"{type(error).__name__}: {first_line(error)}"
            otherwise = Outcome("died", reason=f"its job died ({reason})")
            if self.in_process or isinstance(error, HydraException):
                otherwise = Outcome("failed", reason=reason)
        return [Outcome.read(job.directory.parent / subdir) or otherwise for job, _, subdir in asked]
