"""Self-synthesized rehearsal, SSR (Huang et al. 2024, arXiv 2403.01244).

Tasks come one after the other. Of each, when it has been learned, a small set of instances is made
that every later task is learned together with, so that it is not forgotten:

1. synthesis: the *base* model (the latest one has lost the ability) is shown two instances of the
   task and continues the text with new ones, for all ordered pairs of demonstrations;
2. refinement: the *latest* model writes the outputs anew, greedily; the base's are thrown away;
3. selection: k-means over the inputs, and of each cluster those nearest to the centre.

The paper's text refines and then selects; its code selects and then refines, which is cheaper. Both
are here. A set is made once, and never again when later tasks come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from jaxrecipes.generate.instances import (
    Cues,
    Instance,
    demonstration_prompt,
    ordered_pairs,
    parse_continuation,
    task_prompt,
)
from jaxrecipes.generate.memorised import Shown, same_text
from jaxrecipes.generate.sampling import GREEDY, Sampling
from jaxrecipes.generate.teacher import Reply, Request
from jaxrecipes.neighbors.quotas import pick

Answer = Callable[[Sequence[Request]], Mapping[str, Reply]]
# Of a text, its number of tokens.
CountTokens = Callable[[str], int]
# Requests that are made between two looks at whether there are enough instances.
WAVE = 64


@dataclass(frozen=True)
class Task:
    """A task as it is shown to a model.

    Attributes:
        name: Its name.
        instruction: What it is; may be empty.
        train: What is learned.
        test: What is measured.
        cues: Those with which no line of its texts begins.
    """

    name: str
    instruction: str
    train: tuple[Instance, ...]
    test: tuple[Instance, ...]
    cues: Cues

    def prompt(self, text: str) -> str:
        """Returns the prompt of an input."""
        return task_prompt(self.instruction, text, self.cues)

    def row(self, name: str, instance: Instance) -> dict[str, str]:
        """Returns an instance as a row to learn from."""
        return {
            "id": name,
            "prompt": self.prompt(instance.input),
            "completion": f" {instance.output}",
        }


@dataclass(frozen=True)
class Synthesis:
    """How the base writes instances; see `config.rehearsal.SynthesisSection`."""

    sampling: Sampling
    samples: int = 3
    max_new_tokens: int = 256
    one_each: bool = True
    longest_input: int = 500
    longest_output: int = 128
    copied_words: int = 5
    copied_share: float = 0.5


@dataclass(frozen=True)
class Candidates:
    """Instances that the base wrote, and what became of the rest.

    Attributes:
        instances: Usable ones, each input once, in the order in which they were found.
        counts: `requests`, `failed`, `pieces` (everything that was read), `usable`, and `rejected`,
            reason -> number.
    """

    instances: tuple[Instance, ...]
    counts: Mapping[str, object]


def synthesis_requests(
    task: Task, demonstrations: Sequence[Instance], options: Synthesis, *, seed: int
) -> list[Request]:
    """Asks the base for instances of a task.

    Args:
        task: The task.
        demonstrations: What the base is shown, two at a time.
        options: How it writes.
        seed: Decides the order of pairs and the samples.

    Returns:
        Requests in random order: `samples` for each ordered pair.
    """
    stop = (f"\n{task.cues.input}",) if options.one_each else ()
    pairs = ordered_pairs(len(demonstrations), seed=seed)
    return [
        Request(
            id=f"{task.name}/{first}-{second}/{sample}",
            prompt=demonstration_prompt(
                task.instruction, [demonstrations[first], demonstrations[second]], task.cues
            ),
            max_new_tokens=options.max_new_tokens,
            sampling=options.sampling,
            stop=stop,
            seed=seed * 1_000_003 + sample,
        )
        for sample in range(options.samples)
        for first, second in pairs
    ]


def synthesise(
    task: Task,
    demonstrations: Sequence[Instance],
    options: Synthesis,
    answer: Answer,
    *,
    seed: int,
    needs_output: bool,
    count_tokens: CountTokens,
    enough: int | None = None,
) -> Candidates:
    """Has the base write instances of a task, and keeps what can be used.

    Args:
        task: The task.
        demonstrations: What the base is shown; none of them is among the results.
        options: How it writes, and what is kept.
        answer: Gets replies of the base, by id.
        seed: Decides the order of pairs and the samples.
        needs_output: See `parse_continuation`.
        count_tokens: Counts the tokens of a text.
        enough: Stop asking when so many are usable; None asks for all pairs.

    Returns:
        The candidates; perhaps none.
    """
    requests = synthesis_requests(task, demonstrations, options, seed=seed)
    sieve = _Sieve(task, demonstrations, options, count_tokens)
    asked = failed = 0
    for start in range(0, len(requests), WAVE):
        wave = requests[start : start + WAVE]
        replies = answer(wave)
        asked += len(wave)
        for request in wave:
            reply = replies[request.id]
            if reply.finish == "failed":
                failed += 1
                continue
            parsed = parse_continuation(
                reply.text,
                task.cues,
                instruction=task.instruction,
                ended=reply.finish == "stop",
                needs_output=needs_output,
            )
            sieve.take(parsed.instances, parsed.rejected)
        if enough is not None and len(sieve.kept) >= enough:
            break
    counts = {
        "requests": asked,
        "failed": failed,
        "pieces": sieve.pieces,
        "usable": len(sieve.kept),
        "rejected": dict(sorted(sieve.rejected.items())),
    }
    return Candidates(tuple(sieve.kept), counts)


@dataclass
class _Sieve:
    """Keeps what is new, whole and not too long."""

    task: Task
    demonstrations: Sequence[Instance]
    options: Synthesis
    count_tokens: CountTokens
    kept: list[Instance] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    pieces: int = 0

    def __post_init__(self) -> None:
        inputs = [one.input for one in self.demonstrations]
        self._shown = Shown(inputs, words=self.options.copied_words)
        self._exact = {same_text(text) for text in inputs}
        self._seen: set[str] = set()

    def take(self, instances: Iterable[Instance], rejected: Iterable[str]) -> None:
        for reason in rejected:
            self.pieces += 1
            self.rejected[reason] += 1
        for instance in instances:
            self.pieces += 1
            reason = self._why_not(instance)
            if reason:
                self.rejected[reason] += 1
                continue
            self._seen.add(same_text(instance.input))
            self.kept.append(instance)

    def _why_not(self, instance: Instance) -> str:
        text = same_text(instance.input)
        if text in self._seen:
            return "duplicate"
        if text in self._exact or self._shown.equals(instance.input):
            return "is a demonstration"
        if self._shown.copied_share(instance.input) >= self.options.copied_share:
            return "memorised"
        if self.task.cues.occur_in(instance.input) or self.task.cues.occur_in(instance.output):
            return "holds a cue"
        if self.count_tokens(self.task.prompt(instance.input)) > self.options.longest_input:
            return "input too long"
        if self.count_tokens(instance.output) > self.options.longest_output:
            return "output too long"
        return ""


def refinement_requests(
    task: Task, numbers: Sequence[int], candidates: Sequence[Instance], *, max_new_tokens: int
) -> list[Request]:
    """Asks a model for greedy outputs of candidates' inputs.

    Args:
        task: The task.
        numbers: Which candidates.
        candidates: All of them.
        max_new_tokens: Longest output.
    """
    return [
        Request(
            id=f"{task.name}/{number}",
            prompt=task.prompt(candidates[number].input),
            max_new_tokens=max_new_tokens,
            sampling=GREEDY,
        )
        for number in numbers
    ]


@dataclass(frozen=True)
class RehearsalSet:
    """Instances of a task that are repeated.

    Attributes:
        instances: Those that were chosen, by cluster.
        counts: `wanted`, `candidates`, `chosen`, `refined`, and `rejected` outputs, reason ->
            number.
    """

    instances: tuple[Instance, ...]
    counts: Mapping[str, object]


def choose_set(
    task: Task,
    candidates: Sequence[Instance],
    wanted: int,
    rank: Callable[[Sequence[str]], list[list[int]]],
    *,
    refine: str,
    relabel: Answer,
    longest_output: int,
) -> RehearsalSet:
    """Selects and refines, in either order, or selects only.

    An output of the latest model that is empty, was cut off or holds a cue is none; another
    candidate takes its place as long as there are some.

    Args:
        task: The task.
        candidates: What there is.
        wanted: How many.
        rank: Of inputs, their numbers by cluster in the order in which they are wanted.
        refine: "after_selection", "before_selection" or "never".
        relabel: Gets replies of the latest model, by id.
        longest_output: Longest output of it, in tokens.

    Returns:
        The set; smaller than wanted, perhaps empty, where candidates that can be used are fewer.
    """
    answers: dict[int, Instance] = {}
    rejected: dict[int, str] = {}

    def write(numbers: Sequence[int]) -> None:
        requests = refinement_requests(task, numbers, candidates, max_new_tokens=longest_output)
        replies = relabel(requests)
        for number, request in zip(numbers, requests, strict=True):
            reply = replies[request.id]
            reason = _why_no_answer(task, reply)
            if reason:
                rejected[number] = reason
            else:
                answers[number] = Instance(candidates[number].input, reply.text.strip())

    everything = range(len(candidates))
    if refine == "before_selection":
        write(list(everything))
    if refine == "never":
        answers = dict(enumerate(candidates))
    usable = [number for number in everything if number not in rejected]
    ranked = [
        [usable[place] for place in cluster]
        for cluster in (rank([candidates[number].input for number in usable]) if usable else [])
    ]
    while True:
        chosen = pick(ranked, wanted, rejected)
        new = [number for number in chosen if number not in answers]
        if not new:
            break
        write(new)
    counts = {
        "wanted": wanted,
        "candidates": len(candidates),
        "chosen": len(chosen),
        "refined": 0 if refine == "never" else len(answers) + len(rejected),
        "rejected": dict(sorted(Counter(rejected.values()).items())),
    }
    return RehearsalSet(tuple(answers[number] for number in chosen), counts)


def _why_no_answer(task: Task, reply: Reply) -> str:
    if reply.finish == "failed":
        return f"failed: {reply.error}"
    if not reply.text.strip():
        return "empty output"
    if reply.finish == "length":
        return "cut off"
    return "holds a cue" if task.cues.occur_in(reply.text) else ""


def wanted_count(share: float, rows: int) -> int:
    """Returns how many instances of a task are repeated: a share of its rows, at least one."""
    return max(round(share * rows), 1)


def stage_rows(
    current: Sequence[Mapping[str, str]], sets: Sequence[Sequence[Mapping[str, str]]]
) -> list[Mapping[str, str]]:
    """Returns what a stage learns: the task's rows, and what is repeated of those before it."""
    return [*current, *(row for one in sets for row in one)]
