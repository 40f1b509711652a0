"""Searches for a reward with a language model, and with baselines that have none, at equal budget.

    ./run python -m experiments.reward_llm_search                       # from recorded replies
    ./run python -m experiments.reward_llm_search --task=ace:return --workdir=runs/ace_rewards
    ./run python -m experiments.reward_llm_search --llm.mode=live --llm.model=NAME \\
        --llm.base_url=http://127.0.0.1:8000/v1 --search.goal="Win by driving smoothly."

After Ma et al. 2025 (arXiv 2511.02094). `--task` is any `project:task` that a project publishes in
its module `design`. The default replays the recorded replies in `projects/reward_llm/transcripts`
and needs no network; `python -m projects.reward_llm.doctor` checks every part before a token is
spent. The whole default comparison takes about an hour and a half on two cores; what it gave stands
in `docs/reward_llm.md`. Killed at any moment, the same command goes on where it was.
"""

import dataclasses
import sys
from pathlib import Path

from core_rl import flags
from core_rl.errors import UsageError, UserError
from core_rl.reward_task import load_task
from core_rl.tracking import WandbConfig, WandbSink, open_workdir, write_record
from projects.reward_llm.judge.llm_judge import LLMJudgeConfig
from projects.reward_llm.llm.config import LLMConfig, make_client
from projects.reward_llm.report import write_search_report
from projects.reward_llm.search.arms import MODEL_ARMS
from projects.reward_llm.search.loop import Search, SearchConfig
from projects.reward_llm.search.prompting import prompt_versions
from projects.reward_llm.validate import Validator

TRANSCRIPTS = Path(__file__).parents[1] / "projects" / "reward_llm" / "transcripts"
# What a resume may change: who else proposes, how many searches and finals there are.
MAY_DIFFER = (
    *("llm", "wandb", "workdir"),
    *("search.arms", "search.seeds", "search.finals", "search.preferences"),
)


@dataclasses.dataclass(frozen=True)
class RewardSearch:
    task: str = "sophy:time_trial"  # project:task
    search: SearchConfig = SearchConfig()
    llm: LLMConfig = LLMConfig()
    wandb: WandbConfig = WandbConfig()
    workdir: str = "runs/reward_llm_search"  # the search's identity: the same again resumes it


CONFIG = RewardSearch()


def with_transcripts(config: LLMConfig, task: str) -> LLMConfig:
    """Replays what is recorded of the task in the repository where nothing else is named."""
    if config.mode != "replay" or config.transcripts:
        return config
    paths = sorted((TRANSCRIPTS / task.replace(":", "_")).glob("*.jsonl"))
    if not paths:
        raise UsageError(
            f"no replies are recorded for {task}: leave out the model's arms with --search.arms, "
            "or choose another --llm.mode"
        )
    return dataclasses.replace(config, transcripts=tuple(map(str, paths)))


def run(config: RewardSearch) -> int:
    task = load_task(config.task)
    asks = config.search.judge == "model" or any(a in MODEL_ARMS for a in config.search.arms)
    with open_workdir(config.workdir) as workdir, Validator() as validator:
        # First what may be refused, so that a mistake leaves no record.
        client = make_client(with_transcripts(config.llm, config.task), workdir) if asks else None
        write_record(workdir, config, seeds=list(range(config.search.seeds)), may_differ=MAY_DIFFER)
        mirror = WandbSink(config.wandb, workdir, f"rewards-{task.name}", config, job_type="search")
        search = Search(
            task,
            config.search,
            client,
            validator,
            workdir,
            ask_with=config.llm.request,
            concurrency=config.llm.concurrency,
            judge_with=LLMJudgeConfig(
                temperature=config.llm.temperature,
                max_tokens=config.llm.max_tokens,
                concurrency=config.llm.concurrency,
            ),
            model=config.llm.model,
            mirror=mirror.write,
        )
        search.archive.once("prompts", lambda: {"event": "prompts", **prompt_versions()})
        failed: UserError | None = None
        try:
            unanswered = search.run()
        except UserError as error:
            failed, unanswered = error, []
        search.archive.close()
        page = write_search_report(workdir, task)
        mirror.close(exit_code=1 if failed else 0)
        for stop in unanswered:
            print(stop, file=sys.stderr)
        print(f"report: {page}", file=sys.stderr)
        if failed:
            raise failed
    return 1 if unanswered else 0


if __name__ == "__main__":
    flags.main(run, CONFIG)
