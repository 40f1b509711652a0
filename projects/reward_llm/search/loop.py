"""The search for a reward: propose, check and repair, filter, train, compare, reflect; and finals.

After Ma et al. 2025 (arXiv 2511.02094): candidates are checked by running them, filtered by the
alignment of their returns with preferences (TAC), trained, compared, and what was found goes into
the next generation's proposals. Deviations: the filter also asks scripted drivers, all candidates
of a generation are trained in one program, candidates are compared by a metric that is declared
before the search, and the best of each arm is trained again with fresh random numbers and tested
from other starts. Only these finals are results; scores within a search are the best of many noisy
ones.

Every step is an event of the archive (`archive.Archive`), so a search that was killed goes on where
it was.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from core_rl.errors import UsageError, UserError
from core_rl.reward_task import RewardTask
from projects.reward_llm.compile import make_bank, padded
from projects.reward_llm.judge.judging import Judge, judge_pairs
from projects.reward_llm.judge.llm_judge import LLMJudge, LLMJudgeConfig
from projects.reward_llm.judge.preferences import (
    Clip,
    Preference,
    append_preferences,
    draw_pairs,
    label_arrays,
    load_clips,
    read_preferences,
    save_clips,
)
from projects.reward_llm.judge.rule_judge import RuleJudge
from projects.reward_llm.judge.tac import align_filter
from projects.reward_llm.language import Program
from projects.reward_llm.llm.ask import ask_all
from projects.reward_llm.llm.protocol import (
    AccessDenied,
    ChatClient,
    Completion,
    LLMError,
    Request,
    Stop,
)
from projects.reward_llm.population import Population, Tested, make_population, of_lanes
from projects.reward_llm.search import arms, drivers, prompting
from projects.reward_llm.search.archive import Archive
from projects.reward_llm.search.arms import Past, Plan, Proposal
from projects.reward_llm.search.diagnosis import term_statistics
from projects.reward_llm.validate import Job, Validator, Verdict

VALIDATION_SEED = 7_000_000  # starts that compare candidates
TEST_SEED = 9_000_000  # starts of the finals, which no search has seen
FINAL = 1_000  # added to the number of a final, so that its random numbers are not a search's
DRIVE_STEPS = 300  # of the fixed drivers
CLIP_STEPS = 120  # steps of a clip
CLIPS_EACH = 2  # clips of a candidate
KNOWN_PAIRS = 2  # pairs of drives whose better one every judge must see
SAME = 0.999  # correlation of two rewards from which on one of them is enough


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    arms: tuple[str, ...] = tuple(arms.ARMS)  # who proposes rewards
    seeds: int = 3  # searches of each arm, with the random numbers 0, 1, ...
    generations: int = 2  # of a search
    proposals: int = 8  # candidates that are proposed in a generation
    candidates: int = 6  # of them that are trained, side by side
    rungs: tuple[int, ...] = (120,)  # epochs; after each but the last, the better half goes on
    checks: int = 4  # tests in a rung
    finals: int = 1  # times that a search's best is trained again
    final_epochs: int = 240  # epochs of that training; 0: as many as in the search
    repairs: int = 1  # times that a refused reply is sent back
    judge: Literal["merit", "model", "none"] = "merit"  # who compares clips: a rule, or a model
    judge_pairs: int = 30  # pairs of clips that are compared in a generation
    goal: str = ""  # what is wanted, in a sentence; empty: the task's own
    preferences: str = ""  # a person's answers about the clips of this search, a JSONL file

    def __post_init__(self):
        for name in "seeds generations proposals candidates checks".split():
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in "finals final_epochs repairs".split():
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.judge_pairs < 1:
            raise ValueError(f"judge_pairs must be at least 1, got {self.judge_pairs}")
        if 0 < self.final_epochs < self.checks:
            raise ValueError(f"final_epochs must be 0 or at least checks={self.checks}")
        if self.proposals < self.candidates:
            raise ValueError(f"proposals must be at least candidates={self.candidates}")
        if not self.rungs or min(self.rungs) < self.checks:
            raise ValueError(f"rungs must have at least checks={self.checks} epochs each")
        if not self.arms or len(set(self.arms)) < len(self.arms):
            raise ValueError(f"arms must be different ones of {', '.join(arms.ARMS)}")
        if self.proposals < 2:
            raise ValueError("proposals must be at least 2: CMA-ES has no population of one")
        if self.preferences and not Path(self.preferences).is_file():
            raise ValueError(f"preferences: there is no file {self.preferences}")
        for arm in self.arms:
            if arm not in arms.ARMS:
                raise ValueError(f"arms: {arm!r} is none of {', '.join(arms.ARMS)}")

    @property
    def epochs(self) -> int:
        """Epochs of a candidate that is never dropped."""
        return sum(self.rungs)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An accepted reward."""

    key: str  # its event in the archive
    slot: int
    program: Program
    factors: tuple[float, ...]


class Search:
    """One search; `run` does what the archive does not have yet."""

    def __init__(
        self,
        task: RewardTask,
        config: SearchConfig,
        client: ChatClient | None,
        validator: Validator,
        workdir: Path,
        *,
        ask_with: Callable[..., Request] = Request,
        concurrency: int = 4,
        judge_with: LLMJudgeConfig | None = None,
        model: str = "",
        mirror: Callable[[dict[str, Any]], None] = lambda row: None,
        population: Population | None = None,
        drives: drivers.Drives | None = None,
        say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
    ):
        self.task, self.config, self.client, self.validator = task, config, client, validator
        self.names = list(task.features)
        self.goal = config.goal or task.goal
        self.workdir = workdir
        self.archive = Archive(workdir / "archive.jsonl")
        self.ask_with = ask_with  # (messages, tag, seed=) -> request
        self.concurrency = concurrency
        self.judge_with = judge_with
        self.model = model
        self._mirror = mirror
        self.population = population or make_population(task, config.epochs)
        self._longer: Population | None = None  # of finals, where they are longer
        self._say = say
        self.drives = drives or drivers.drive_all(task, min(task.test_length, DRIVE_STEPS))
        self._rows = drivers.real_rows(task, self.drives)
        self._programs: dict[str, Program] = {}

    def run(self) -> list[Stop]:
        """All searches and finals. Returns why arms had to stop for want of replies; what needs
        none is done all the same."""
        waiting: list[Stop] = []
        for seed in range(self.config.seeds):
            for arm in self.config.arms:
                try:
                    best = self.search(arm, seed)
                except AccessDenied:
                    raise
                except Stop as stop:
                    waiting.append(stop)
                    continue
                if best is not None:
                    self.archive.once(f"s{seed}/{arm}/best", lambda best=best: best)
            self.finals(seed)
        return waiting

    def search(self, arm: str, seed: int) -> dict[str, Any] | None:
        """One arm's search; its best candidate, None if it had none that could be trained."""
        past: list[Past] = []
        generations = 1 if arm in arms.FIXED else self.config.generations
        for generation in range(generations):
            past += self.generation(arm, seed, generation, past)
        if arm in arms.FIXED:  # there is nothing to choose
            return {"event": "best", "candidate": past[0].key, "score": None} if past else None
        tried = [one for one in past if one.score is not None]
        if not tried:
            return None
        best = max(tried, key=lambda one: one.score)  # pyright: ignore[reportArgumentType, reportCallIssue]
        return {"event": "best", "candidate": best.key, "score": best.score}

    def generation(self, arm: str, seed: int, number: int, past: Sequence[Past]) -> list[Past]:
        # What all arms have in common is done once.
        shared = number == 0 and arm in arms.MODEL_ARMS
        path = f"s{seed}/{'first' if shared else arm}/g{number}"
        plan = Plan(
            self.task, self.goal, self.drives, number, seed, self.config.proposals, self.scales
        )
        proposals = arms.propose(arm, plan, past)
        candidates = self.check(path, proposals)
        if arm in arms.FIXED:
            return [self.past_of(one, number, None, {}, [], []) for one in candidates]
        kept = self.filter(path, candidates, past)
        return self.train(path, seed, number, candidates, kept)

    # Propose and check.

    @functools.cached_property
    def scales(self) -> list[float]:
        """Mean magnitude of each term of the task's unweighted reward."""
        terms = self.program(self.task.terms)
        return drivers.term_scales(terms, self.drives, self.names).tolist()

    def program(self, source: str) -> Program:
        """A source of ours or of the archive, which is trusted as little as a model's."""
        if source not in self._programs:
            verdict = self.validator.judge([self.job(f"```python\n{source}\n```")])[0]
            if verdict.program is None or not verdict.accept:
                raise UserError(f"a reward of {self.task.name} is refused: {verdict.hint}")
            self._programs[source] = verdict.program
        return self._programs[source]

    def job(self, reply: str, finish_reason: str = "stop") -> Job:
        return Job(reply, self.task.features, finish_reason, rows=self._rows)

    def check(self, path: str, proposals: Sequence[Proposal]) -> list[Candidate]:
        """Asks, judges and repairs; records each proposal, and returns those that are rewards."""
        keys = [f"{path}/c{slot}" for slot in range(len(proposals))]
        new = [slot for slot, key in enumerate(keys) if key not in self.archive]
        if any(proposals[slot].messages for slot in new):
            found = self.converse([proposals[slot] for slot in new])
        else:
            replies = [f"```python\n{proposals[slot].source}\n```" for slot in new]
            verdicts = self.validator.judge([self.job(reply) for reply in replies])
            found = [(verdict, {}) for verdict in verdicts]
        for slot, (verdict, told) in zip(new, found, strict=True):
            self.archive.add(keys[slot], _candidate_event(proposals[slot], verdict, told))
            if verdict.accept and verdict.program is not None:
                self._programs[verdict.program.source] = verdict.program
        candidates = []
        for slot, key in enumerate(keys):
            event = self.archive[key]
            if event["accept"]:
                program = self.program(event["source"])
                factors = tuple(event["factors"])
                candidates.append(Candidate(key, slot, program, factors))
        return candidates

    def converse(self, proposals: Sequence[Proposal]) -> list[tuple[Verdict, dict[str, Any]]]:
        """Replies to requests, refused ones sent back up to `repairs` times, and their verdicts."""
        messages = [proposal.messages for proposal in proposals]
        rounds: list[list[dict[str, Any]]] = [[] for _ in proposals]
        verdicts = [Verdict(False, "no_reply") for _ in proposals]
        replies = ["" for _ in proposals]
        open_slots = list(range(len(proposals)))
        for attempt in range(self.config.repairs + 1):
            requests = [
                self.ask_with(messages[i], f"{proposals[i].tag}/r{attempt}", seed=attempt)
                for i in open_slots
            ]
            if self.client is None:
                raise UsageError("this arm asks a language model, and there is none")
            answers = ask_all(self.client, requests, self.concurrency)
            if attempt == 0 and all(isinstance(answer, LLMError) for answer in answers):
                # Nothing is recorded: whoever resumes with replies at hand gets them.
                raise Stop(f"{proposals[0].tag} and {len(answers) - 1} more: {answers[0]}")
            jobs, asked = [], []
            for i, answer in zip(open_slots, answers, strict=True):
                if isinstance(answer, LLMError):
                    rounds[i].append({"error": str(answer)[:300]})
                    continue
                replies[i] = answer.text
                rounds[i].append(_told(answer))
                jobs.append(self.job(answer.text, answer.finish_reason))
                asked.append(i)
            for i, verdict in zip(asked, self.validator.judge(jobs), strict=True):
                verdicts[i] = verdict
                rounds[i][-1] |= {"reason": verdict.reason, "hint": verdict.hint}
            # One that was not answered at all is asked again as it was.
            open_slots = [i for i in open_slots if not verdicts[i].accept]
            for i in open_slots:
                if "error" not in rounds[i][-1]:
                    messages[i] = prompting.repair_messages(
                        proposals[i].messages, replies[i], verdicts[i].reason, verdicts[i].hint
                    )
            if not open_slots:
                break
        told = [
            {
                "tag": proposals[i].tag,
                "rounds": rounds[i],
                "hypothesis": prompting.hypothesis_of(replies[i]),
            }
            for i in range(len(proposals))
        ]
        return list(zip(verdicts, told, strict=True))

    # Filter.

    def filter(
        self, path: str, candidates: Sequence[Candidate], past: Sequence[Past]
    ) -> list[Candidate]:
        """Those that are trained; see the event for why the others are not."""
        event = self.archive.once(f"{path}/filter", lambda: self._filter(candidates, past))
        return [one for one in candidates if one.slot in event["kept"]]

    def _filter(self, candidates: Sequence[Candidate], past: Sequence[Past]) -> dict[str, Any]:
        paid = {
            one.slot: drivers.earnings(one.program, one.factors, self.drives, self.names)
            for one in candidates
        }
        hackable = {slot: drivers.exploiters(earned) for slot, earned in paid.items()}
        good = [one for one in candidates if not hackable[one.slot]]
        twins = self._twins(good)
        single = [one for one in good if one.slot not in twins]
        event: dict[str, Any] = {
            "event": "filter",
            "paid": {str(slot): earned for slot, earned in paid.items()},
            "hackable": {str(slot): by for slot, by in hackable.items() if by},
            "twins": {str(slot): of for slot, of in twins.items()},
            "tac": {},
            "kept": [],
        }
        room = self.config.candidates
        chosen = single[:room]
        clips, preferences = self._judged(past)
        if preferences and len(single) > room:
            # After the end of an episode all features of a clip are 0, and nothing is paid.
            alive = np.any(clips != 0.0, axis=-1)
            rewards = np.stack(
                [
                    np.where(alive, drivers.pay(one.program, one.factors, clips, self.names), 0.0)
                    for one in single
                ]
            )
            ids = sorted({name for p in preferences for name in p.pair})
            pairs, labels = label_arrays(preferences, ids)
            result = align_filter(
                [str(one.slot) for one in single],
                np.sum(rewards, axis=-1, dtype=float),
                pairs,
                labels,
                keep=room - 1 if room > 1 else 1,
                seed=len(past),
            )
            by_slot = {str(one.slot): one for one in single}
            chosen = [by_slot[slot] for slot in result.going_on][:room]
            event["tac"] = dict(
                zip(by_slot, np.round(result.alignment.tau_b, 4).tolist(), strict=True)
            )
            event["tac_reason"] = result.reason
        event["kept"] = sorted(one.slot for one in chosen)
        return event

    def _twins(self, candidates: Sequence[Candidate]) -> dict[int, int]:
        """Candidates whose reward another, earlier one already is, up to scale and offset."""
        steps = drivers.steps_of(self.drives, list(self.drives.features), 1000)
        found: dict[int, int] = {}
        seen: list[tuple[int, np.ndarray]] = []
        for one in candidates:
            reward = drivers.pay(one.program, one.factors, steps, self.names).astype(float)
            centred = reward - reward.mean()
            unit = centred / max(float(np.linalg.norm(centred)), 1e-12)
            twin = next((slot for slot, other in seen if float(unit @ other) > SAME), None)
            if twin is None:
                seen.append((one.slot, unit))
            else:
                found[one.slot] = twin
        return found

    def _judged(self, past: Sequence[Past]) -> tuple[np.ndarray, list[Preference]]:
        """Clips [M, T, F] of this search's candidates and the preferences about them, both in the
        order of the clips' sorted ids."""
        ours = {_clip_name(one.key) for one in past}
        paths = [self.workdir / "preferences.jsonl", Path(self.config.preferences or "/dev/null")]
        preferences = [
            p
            for path in dict.fromkeys(paths)
            if path.is_file()
            for p in read_preferences(path)
            if {name.rsplit("-e", 1)[0] for name in p.pair} <= ours and p.answer != "skip"
        ]
        ids = sorted({name for p in preferences for name in p.pair})
        if not ids:
            return np.zeros((0, 0, len(self.names))), []
        stored = load_clips(self.workdir / "clips")
        missing = [name for name in ids if name not in stored]
        if missing:
            raise UserError(f"{self.workdir / 'clips'}: the judged clip {missing[0]} is not there")
        features = [
            np.stack([stored[name].features[feature] for feature in self.names], axis=-1)
            for name in ids
        ]
        return np.stack(features), preferences

    # Train and compare.

    def train(
        self,
        path: str,
        seed: int,
        generation: int,
        candidates: Sequence[Candidate],
        kept: Sequence[Candidate],
    ) -> list[Past]:
        """Trains the kept candidates side by side, and judges what they have learnt."""
        alive = list(kept)
        curves: dict[int, dict[str, list[float]]] = {one.slot: {} for one in candidates}
        statistics: dict[int, list[Any]] = {one.slot: [] for one in candidates}
        updates: dict[int, list[int]] = {one.slot: [] for one in candidates}
        stages: list[tuple[list[Candidate], int]] = []  # who was trained, and for how many epochs
        state: Any = None
        for number, epochs in enumerate(self.config.rungs if alive else ()):
            key = f"{path}/rung{number}"
            if key not in self.archive:
                if state is None:
                    state = self._trained_so_far(seed, generation, list(kept), stages)
                if stages:
                    state = of_lanes(state, [stages[-1][0].index(one) for one in alive])
                state, event, tested = self._rung(key, state, alive, epochs)
                if number == len(self.config.rungs) - 1:
                    save_clips(self.workdir / "clips", self._clips(alive, tested))
                self.archive.add(key, event)
            event = self.archive[key]
            before = sum(epochs for _, epochs in stages)
            for lane in event["lanes"]:
                slot = lane["slot"]
                for name, values in lane["curve"].items():
                    curves[slot].setdefault(name, []).extend(values)
                statistics[slot] += lane["statistics"]
                per_epoch = self.population.updates_per_epoch
                updates[slot] += [(before + n) * per_epoch for n in event["checked"]]
            stages.append((alive, epochs))
            if number == len(self.config.rungs) - 1 and self.config.judge != "none":
                last = alive
                self.archive.once(f"{path}/judged", lambda last=last: self._judge(path, last))
            ranked = sorted(
                alive, key=lambda one: _best(curves[one.slot], self.task.score), reverse=True
            )
            better = ranked[: max(1, len(ranked) // 2)]
            alive = [one for one in alive if one in better]
        return [
            self.past_of(
                one,
                generation,
                _best(curves[one.slot], self.task.score) if updates[one.slot] else None,
                curves[one.slot],
                statistics[one.slot],
                updates[one.slot],
            )
            for one in candidates
        ]

    def past_of(self, one: Candidate, generation, score, curve, statistics, updates) -> Past:
        return Past(
            key=one.key,
            slot=one.slot,
            generation=generation,
            source=one.program.source,
            terms=one.program.terms,
            factors=one.factors,
            score=score,
            curve=curve,
            statistics=statistics,
            updates=updates,
        )

    def _trained_so_far(
        self,
        seed: int,
        generation: int,
        kept: Sequence[Candidate],
        stages: Sequence[tuple[list[Candidate], int]],
    ) -> Any:
        """A population as it was after the rungs that the archive has: trained once more."""
        key = jax.random.fold_in(jax.random.key(seed), generation)
        state = self.population.init([key] * len(kept))
        before = list(kept)
        for alive, epochs in stages:
            state = of_lanes(state, [before.index(one) for one in alive])
            state = self._train(self.population, state, alive, epochs)
            before = alive
        return state

    def _train(
        self,
        population: Population,
        state: Any,
        candidates: Sequence[Candidate],
        epochs: int,
        at_check: Callable[[int, Any], None] | None = None,
    ) -> Any:
        """A population after some epochs under the candidates' rewards. `at_check` is given the
        epoch and the state, `checks` times evenly."""
        bank = make_bank([one.program for one in candidates], self.names)
        weights = padded([one.factors for one in candidates], bank.num_terms)
        state = population.relabel(state, bank, weights)
        checked = self._checked(epochs)
        for epoch in range(1, epochs + 1):
            state, _ = population.epoch(state, bank, weights)
            if at_check is not None and epoch in checked:
                at_check(epoch, state)
        return state

    def _checked(self, epochs: int) -> list[int]:
        checks = self.config.checks
        return [round(epochs * (n + 1) / checks) for n in range(checks)]

    def _rung(
        self, title: str, state: Any, alive: Sequence[Candidate], epochs: int
    ) -> tuple[Any, dict[str, Any], Tested]:
        curves: list[dict[str, list[float]]] = [{} for _ in alive]
        statistics: list[list[Any]] = [[] for _ in alive]
        tests: list[Tested] = []
        began = time.monotonic()

        def at_check(epoch: int, state: Any) -> None:
            tested = self.population.test(state, jax.random.key(VALIDATION_SEED))
            tests[:] = [tested]
            _extend(curves, tested)
            for lane, one in enumerate(alive):
                features, met = tested.features[lane], tested.alive[lane]
                statistics[lane].append(
                    term_statistics(one.program, one.factors, features, met, self.names)
                )
            self._progress(title, epoch, epochs, len(alive), curves, began)

        state = self._train(self.population, state, alive, epochs, at_check)
        lanes = [
            {"slot": one.slot, "curve": curves[lane], "statistics": statistics[lane]}
            for lane, one in enumerate(alive)
        ]
        event = {"event": "trained", "checked": self._checked(epochs), "lanes": lanes}
        return state, event, tests[-1]

    def _progress(
        self,
        title: str,
        epoch: int,
        epochs: int,
        lanes: int,
        curves: Sequence[dict[str, list[float]]],
        began: float,
    ) -> None:
        seconds = time.monotonic() - began
        rate = epoch * lanes * self.population.updates_per_epoch / seconds
        scores = [curve[self.task.score][-1] for curve in curves]
        self._mirror(
            {
                "env_steps": epoch * self.population.env_steps_per_epoch,
                **{f"{title}/lane{lane}/{self.task.score}": v for lane, v in enumerate(scores)},
            }
        )
        left = seconds / epoch * (epochs - epoch)
        self._say(
            f"{title}  epoch {epoch}/{epochs}  {rate:.0f} updates/s  {self.task.score} "
            f"{', '.join(f'{score:.3f}' for score in scores)}  ETA {int(left // 60)}:"
            f"{int(left % 60):02d}"
        )

    def _clips(self, alive: Sequence[Candidate], tested: Tested) -> list[Clip]:
        """The beginnings of the last test's episodes, `CLIPS_EACH` of each candidate."""
        return [
            self._clip(
                f"{_clip_name(one.key)}-e{episode}",
                tested.features[lane, :, episode],
                policy=one.key,
                start=f"{VALIDATION_SEED}-{episode}",
            )
            for lane, one in enumerate(alive)
            for episode in range(min(CLIPS_EACH, tested.features.shape[2]))
        ]

    def _clip(self, name: str, steps: np.ndarray, policy: str, start: str) -> Clip:
        """A clip of steps [T, F]."""
        part = steps[: min(CLIP_STEPS, self.task.test_length)]
        features = {feature: part[:, i] for i, feature in enumerate(self.names)}
        return Clip(name, self.task.summary(features), None, features, policy, start)

    def _judge(self, path: str, alive: Sequence[Candidate]) -> dict[str, Any]:
        """Preferences between what the candidates have learnt, also about known pairs."""
        stored = load_clips(self.workdir / "clips")
        ours = {_clip_name(one.key) for one in alive}
        clips = {name: clip for name, clip in stored.items() if name.rsplit("-e", 1)[0] in ours}
        pairs = draw_pairs(list(clips.values()), self.config.judge_pairs, seed=0)
        good = self.drives.features[drivers.GOOD][0]
        known = [
            (
                self._clip("drive-good", good, "drive-good", "drive"),
                self._clip(
                    f"drive-{name}", self.drives.features[name][0], f"drive-{name}", "drive"
                ),
            )
            for name in list(self.task.trivial)[:KNOWN_PAIRS]
        ]
        judge: Judge
        if self.config.judge == "model":
            if self.client is None:
                raise UsageError("--search.judge=model needs a language model")
            judge = LLMJudge(
                self.client,
                self.goal,
                config=self.judge_with,
                model=self.model,
                tag=f"{path}/judge",
            )
        else:
            judge = RuleJudge(lambda clip: self.task.merit(clip.features), "merit")
        batch = judge_pairs(judge, [(clips[a], clips[b]) for a, b in pairs], known)
        log = self.workdir / "preferences.jsonl"
        answered = {(p.pair, p.judge) for p in read_preferences(log)}
        append_preferences(log, [p for p in batch.preferences if (p.pair, p.judge) not in answered])
        return {
            "event": "judged",
            "judge": judge.name,
            "void": batch.void,
            **dataclasses.asdict(batch.statistics),
        }

    # Finals.

    def finals(self, seed: int) -> None:
        """Trains each arm's best again with fresh random numbers and tests it from other starts."""
        lanes: list[tuple[str, Candidate, int]] = []
        for arm in self.config.arms:
            best = f"s{seed}/{arm}/best"
            if best not in self.archive:
                continue
            event = self.archive[self.archive[best]["candidate"]]
            program, factors = self.program(event["source"]), tuple(event["factors"])
            for number in range(self.config.finals):
                key = f"s{seed}/{arm}/final{number}"
                if key not in self.archive:
                    lanes.append((key, Candidate(event["key"], 0, program, factors), number))
        size = self.config.candidates
        for first in range(0, len(lanes), size):
            self._final(seed, lanes[first : first + size])

    def _final(self, seed: int, lanes: Sequence[tuple[str, Candidate, int]]) -> None:
        root = jax.random.key(seed)
        epochs = self.config.final_epochs or self.config.epochs
        population = self.population
        if epochs != self.config.epochs:
            population = self._longer = self._longer or make_population(self.task, epochs)
        state = population.init([jax.random.fold_in(root, FINAL + n) for _, _, n in lanes])
        curves: list[dict[str, list[float]]] = [{} for _ in lanes]
        best_agent = jax.tree.map(jax.numpy.copy, state.agent)  # the state itself is donated
        best = np.full(len(lanes), -np.inf)
        began = time.monotonic()

        def at_check(epoch: int, state: Any) -> None:
            nonlocal best, best_agent
            tested = population.test(state, jax.random.key(VALIDATION_SEED))
            _extend(curves, tested)
            scores = np.nan_to_num(tested.metrics[self.task.score], nan=-np.inf)
            # The best of the checks is the policy that is kept, as in any training here.
            better = scores > best
            best = np.maximum(scores, best)
            best_agent = jax.tree.map(
                lambda new, old: jax.numpy.where(
                    better.reshape(-1, *[1] * (new.ndim - 1)), new, old
                ),
                state.agent,
                best_agent,
            )
            self._progress(f"s{seed}/finals", epoch, epochs, len(lanes), curves, began)

        state = self._train(population, state, [one for _, one, _ in lanes], epochs, at_check)
        state = dataclasses.replace(state, agent=best_agent)
        tested = population.test(state, jax.random.key(TEST_SEED + seed))
        for lane, (key, one, number) in enumerate(lanes):
            metrics = {name: float(values[lane]) for name, values in tested.metrics.items()}
            self.archive.add(
                key,
                {
                    "event": "final",
                    "candidate": one.key,
                    "number": number,
                    "metrics": metrics,
                    "checked": self._checked(epochs),
                    "curve": curves[lane],
                },
            )


def _candidate_event(proposal: Proposal, verdict: Verdict, told: dict[str, Any]) -> dict[str, Any]:
    program = verdict.program if verdict.accept else None
    factors = proposal.factors or ((1.0,) * len(program.terms) if program else ())
    return {
        "event": "candidate",
        "operator": proposal.operator,
        "parents": list(proposal.parents),
        "accept": verdict.accept,
        "reason": verdict.reason,
        "stage": verdict.stage,
        "hint": verdict.hint,
        "warnings": list(verdict.warnings),
        "id": program.id if program else None,
        "source": program.source if program else None,
        "terms": list(program.terms) if program else [],
        "factors": list(factors),
        **told,
    }


def _told(answer: Completion) -> dict[str, Any]:
    """What a record keeps of a completion; its text is in the transcripts."""
    return {
        "model": answer.model,
        "date": answer.date,
        "source": answer.source,
        "exact": answer.exact,
        "finish_reason": answer.finish_reason,
        "input_tokens": answer.usage.input_tokens,
        "output_tokens": answer.usage.output_tokens,
    }


def _extend(curves: Sequence[dict[str, list[float]]], tested: Tested) -> None:
    """Adds a test to the curve of each lane."""
    for lane, curve in enumerate(curves):
        for name, values in tested.metrics.items():
            curve.setdefault(name, []).append(float(values[lane]))


def _best(curve: dict[str, list[float]], score: str) -> float:
    """The best of the checks; a score that is not a number is the worst."""
    values = np.nan_to_num(np.array(curve.get(score, [])), nan=-np.inf)
    return float(np.max(values, initial=-np.inf))


def _clip_name(key: str) -> str:
    return key.replace("/", "-")
