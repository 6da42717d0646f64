"""What the demo submits, how each task must end, and which results are right."""

import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import agent_core
from agent_core.api.wire import Code, Json

PRIME_LIMIT: Final = 2_000_000
PRIME_COUNT: Final = 148_933  # primes below PRIME_LIMIT
SHARDS: Final = 8
BLOCKED: Final = "rm -rf"  # the demo's agent refuses every command line with it

Task = Mapping[str, Json]
Check = Callable[[Task], str]  # what is wrong with the result; "" = nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One task of the demo."""

    fields: Mapping[str, Json]
    wanted: str = "completed"
    check: Check
    after: tuple[str, ...] = ()  # names of jobs that must have completed
    early: bool = False  # runs before the others are submitted

    @property
    def name(self) -> str:
        return str(self.fields["name"])

    def complaint(self, task: Task) -> str:
        """Why this is not the end that was expected; "" if it is."""
        if task.get("status") != self.wanted:
            why = task.get("error") or task.get("stderr") or f"exit code {task.get('exit_code')}"
            return f"ended as {task.get('status')}, not {self.wanted}: {why}"
        return self.check(task)


def jobs(directory: Path) -> list[Job]:
    """The workload, in the order it is submitted: the urgent task comes last and runs early."""
    counts = directory / "counts"
    primes = _primes(counts)
    refused = _refused()
    return [
        _steps(),
        _gives_way(),
        *primes,
        _sum(counts, tuple(job.name for job in primes)),
        _flaky(directory / "tries"),
        _docs(directory / "docs"),
        refused,
        _never(refused.name),
        _script(),
    ]


def primes_found(tasks: Sequence[Task]) -> int:
    """The shards' counts, added up."""
    counts = [str(task.get("stdout") or "").strip() for task in tasks if _is_shard(task)]
    return sum(int(count) for count in counts if count.isascii() and count.isdigit())


def _is_shard(task: Task) -> bool:
    return str(task.get("name")).startswith("primes-")


_COUNT_PRIMES: Final = """\
import os

low, high = int(os.environ["LOW"]), int(os.environ["HIGH"])
divisors = [n for n in range(2, 1415) if all(n % d for d in range(2, int(n**0.5) + 1))]

def is_prime(n):
    for d in divisors:
        if d * d > n:
            return True
        if n % d == 0:
            return False
    return True

count = sum(is_prime(n) for n in range(max(low, 2), high))
print(count)
with open(f"{os.environ['COUNTS']}/{low}", "w") as file:
    print(count, file=file)
"""


def _primes(counts: Path) -> list[Job]:
    counts.mkdir()
    width = PRIME_LIMIT // SHARDS
    return [
        Job(
            fields={
                "name": f"primes-{shard + 1}-of-{SHARDS}",
                "type": "python",
                "command": _COUNT_PRIMES,
                "env": {
                    "LOW": str(shard * width),
                    "HIGH": str((shard + 1) * width),
                    "COUNTS": str(counts),
                },
            },
            check=_prints(re.compile(r"\d+")),
        )
        for shard in range(SHARDS)
    ]


def _sum(counts: Path, shards: tuple[str, ...]) -> Job:
    """Waits for every shard and holds no slot meanwhile; urgent, so it runs as soon as it may."""
    text = f"cat {counts}/* | awk '{{ sum += $1 }} END {{ print sum }}'"
    return Job(
        fields={"name": "sum-of-the-shards", "command": text, "priority": 3},
        check=_prints(re.compile(str(PRIME_COUNT))),
        after=shards,
    )


def _gives_way() -> Job:
    """Has a slot until more urgent work comes, and runs again when that is done: once more, or
    twice, if the sum of the shards comes due just then.
    """
    text = '[ "$REMOTEGPU_RUN_NO" -gt 1 ] || sleep 60; echo "run $REMOTEGPU_RUN_NO"'
    return Job(
        fields={"name": "gives-way", "command": text, "priority": 10},
        check=_prints(re.compile("run [2-9]")),
        early=True,
    )


def _prints(wanted: re.Pattern[str]) -> Check:
    def check(task: Task) -> str:
        printed = str(task.get("stdout") or "").strip()
        return "" if wanted.fullmatch(printed) else f"printed {printed[:80]!r}"

    return check


def _docs(copy: Path) -> Job:
    """The five commonest words of our own docs, by a pipeline, checked by Python's own count."""
    copy.mkdir()
    for number, source in enumerate(_texts()):
        shutil.copyfile(source, copy / f"{number:02d}-{source.name}")
    expected = _commonest(copy)

    def check(task: Task) -> str:
        lines = [line.split() for line in str(task.get("stdout") or "").splitlines()]
        return "" if lines == expected else f"counted {lines}, and Python {expected}"

    pipeline = (
        f"cat {copy}/* | tr -cs 'A-Za-z' '\\n' | tr 'A-Z' 'a-z' | sed '/^$/d'"
        " | sort | uniq -c | sort -k1,1nr -k2,2 | head -n 5"
    )
    fields = {"name": "words-of-the-docs", "command": pipeline, "env": {"LC_ALL": "C"}}
    return Job(fields=fields, check=check)


def _texts() -> list[Path]:
    """Our docs where there is a checkout, else the program's own sources."""
    package = Path(agent_core.__file__).parent
    checkout = [package.parent / "README.md", *sorted((package.parent / "docs").glob("*.md"))]
    found = [path for path in checkout if path.is_file()]
    return found or sorted(package.glob("*.py"))


def _commonest(directory: Path) -> list[list[str]]:
    text = b"\n".join(path.read_bytes() for path in sorted(directory.iterdir()))
    counts = Counter(word.lower().decode() for word in re.findall(rb"[A-Za-z]+", text))
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [[str(count), word] for word, count in ordered[:5]]


def _script() -> Job:
    text = "#!/usr/bin/awk -f\nBEGIN { for (n = 1; n <= 100; n++) sum += n * n; print sum }\n"
    return Job(
        fields={"name": "urgent-script", "type": "script", "command": text, "priority": 1},
        check=_prints(re.compile("338350")),
    )


def _flaky(counter: Path) -> Job:
    """Fails twice, then succeeds; the file counts the runs."""
    text = (
        'run=$(( $(cat "$COUNTER" 2>/dev/null || echo 0) + 1 )); echo "$run" > "$COUNTER"\n'
        'echo "run $run"; [ "$run" -ge 3 ]'
    )

    def check(task: Task) -> str:
        runs = counter.read_text().strip() if counter.exists() else "0"
        return "" if runs == "3" else f"ran {runs} times, not 3"

    fields = {
        "name": "fails-twice", "command": text, "env": {"COUNTER": str(counter)},
        "max_retries": 3, "retry_delay": 1,
    }  # fmt: skip
    return Job(fields=fields, check=check)


_COUNT_STEPS: Final = """\
for step in 1 2 3 4 5 6 7 8 9 10; do
    echo "$((step * 10)) step $step of 10" >> "$REMOTEGPU_PROGRESS"
    sleep 0.5
done
echo "10 steps"
"""


def _steps() -> Job:
    return Job(
        fields={"name": "tells-progress", "command": _COUNT_STEPS, "priority": 4},
        check=_prints(re.compile("10 steps")),
        early=True,
    )


def _refused() -> Job:
    def check(task: Task) -> str:
        if task.get("error_code") == Code.POLICY or task.get("reason") == "refused":
            return ""
        return f"failed for another reason: {task.get('error')}"

    fields = {"name": "refused-by-policy", "command": f"{BLOCKED} ./demo", "priority": 9}
    return Job(fields=fields, wanted="failed", check=check)


def _never(refused: str) -> Job:
    def check(task: Task) -> str:
        if task.get("error_code") == Code.DEPENDENCY:
            return ""
        return f"failed for another reason: {task.get('error')}"

    fields = {"name": "after-the-refused", "command": "echo never"}
    return Job(fields=fields, wanted="failed", check=check, after=(refused,))
