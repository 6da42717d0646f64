"""Tasks as servers really send them: readable forms are read, bad ones harm nobody else."""

import json
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import LogCapture

from agent_core import Instant, Lease, Resources, Task
from agent_core.clock import SystemClock
from agent_core_plugins.server_client.reading import read_tasks

CLOCK = SystemClock()
LEASE = Lease(until=Instant.now(CLOCK).plus(300))
READABLE = {"id": "t1", "attempt_id": "a1", "command": "true"}


def read(*entries: Any) -> list[Task]:
    return read_and_say(*entries)[0]


def read_and_say(*entries: Any) -> tuple[list[Task], list[str]]:
    capture = LogCapture()
    tasks = read_tasks(
        list(entries),
        source="server_client",
        agent_id="agent-1",
        lease=LEASE,
        clock=CLOCK,
        log=structlog.wrap_logger(None, processors=[capture]),
    )
    return tasks, [entry["event"] for entry in capture.entries]


def one(**fields: Any) -> Task:
    (task,) = read(READABLE | fields)
    return task


def test_the_least_that_makes_a_task_gets_the_defaults() -> None:
    task = one()
    assert (task.id, task.attempt_id, task.command) == ("t1", "a1", "true")
    assert (task.type, task.args, task.exec, task.env) == ("shell", (), False, {})
    assert (task.timeout, task.priority, task.retry_delay, task.max_retries) == (3600, 5, 60, 0)
    assert task.source == "server_client"
    assert task.lease == LEASE
    assert task.unreadable == ""
    assert abs(task.created_at - CLOCK.wall()) < 60


def test_every_field_of_a_task_is_read() -> None:
    task = one(
        name="train",
        type="python",
        args=["-m", "x"],
        exec=True,
        workdir="/data",
        env={"A": "1"},
        timeout=7,
        priority=2,
        max_retries=3,
        retry_count=1,
        retry_delay=5,
        created_at="2026-01-31T12:00:00Z",
    )
    assert (task.name, task.type, task.args, task.exec) == ("train", "python", ("-m", "x"), True)
    assert (task.workdir, dict(task.env), task.timeout, task.priority) == (
        *("/data", {"A": "1"}),
        *(7, 2),
    )
    assert (task.max_retries, task.retry_count, task.retry_delay) == (3, 1, 5)
    assert task.created_at == 1769860800.0


@pytest.mark.parametrize(
    ("args", "read_as"),
    [
        (None, ()),
        ([], ()),
        ("", ()),
        (["a", 1, 2.5, True, None, "b c"], ("a", "1", "2.5", "true", "b c")),
        ('["a", "b"]', ("a", "b")),
        ("plain text", ("plain text",)),
        ("[not json", ("[not json",)),
        (5, ("5",)),
        (True, ("true",)),
        ("5", ("5",)),
    ],
)
def test_args_in_every_readable_form(args: object, read_as: tuple[str, ...]) -> None:
    assert one(args=args).args == read_as


@pytest.mark.parametrize(
    ("env", "read_as"),
    [
        (None, {}),
        ({}, {}),
        ([], {}),
        ("", {}),
        ({"A": 1, "B": True, "C": None, "D": "x"}, {"A": "1", "B": "true", "D": "x"}),
        ({"E": 0.5}, {"E": "0.5"}),
        ('{"A": "1"}', {"A": "1"}),
    ],
)  # fmt: skip
def test_env_in_every_readable_form_under_both_names(env: object, read_as: dict[str, str]) -> None:
    assert one(env=env).env == read_as
    assert one(env_vars=env).env == read_as
    assert one(env=None, env_vars=env).env == read_as


def test_env_wins_over_env_vars_when_both_are_there() -> None:
    assert one(env={"A": "ours"}, env_vars={"A": "theirs"}).env == {"A": "ours"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"command": None}, "command: missing"),
        ({"command": ""}, "command: missing"),
        ({"command": ["ls"]}, "command: text is needed, this is a list"),
        ({"command": "\ud800"}, "surrogate"),
        ({"args": {"a": 1}}, "args: a list of strings is needed, this is an object"),
        ({"args": '{"a": 1}'}, "args: a list"),
        ({"args": ["a", ["b"]]}, "args[1]: text is needed, this is a list"),
        ({"args": ["a", "\udfff"]}, "args[1]"),
        ({"env": {"A": {"B": 1}}}, "env.A: text is needed, this is an object"),
        ({"env": ["A=1"]}, "env: an object of strings is needed, this is a list"),
        ({"env_vars": 7}, "env_vars: an object of strings is needed, this is the number 7"),
        ({"env_vars": "A=1"}, "env_vars: an object"),
        ({"exec": "perhaps"}, "exec: true or false is needed"),
        ({"exec": [True]}, "exec: true or false is needed, this is a list"),
        ({"workdir": {}}, "workdir: text is needed"),
        ({"timeout": "soon"}, "timeout: a number is needed, this is the text 'soon'"),
        ({"timeout": True}, "timeout: a number is needed, this is a boolean"),
        ({"timeout": 1e12}, "timeout: "),
        ({"priority": []}, "priority: a number is needed, this is a list"),
        ({"max_retries": {}}, "max_retries: a number is needed, this is an object"),
    ],
)
def test_what_cannot_be_read_is_a_task_that_says_why_and_harms_no_other(
    fields: dict[str, object], words: str
) -> None:
    tasks = read({**READABLE, "id": "before"}, READABLE | fields, {**READABLE, "id": "after"})
    assert {task.id for task in tasks} == {"before", "t1", "after"}
    bad = next(task for task in tasks if task.id == "t1")
    assert words in bad.unreadable
    assert bad.attempt_id == "a1"
    assert bad.lease == LEASE
    assert all(task.unreadable == "" for task in tasks if task is not bad)


@pytest.mark.parametrize(
    "entry",
    [
        None,
        7,
        "text",
        [],
        {},
        {"id": "t1"},
        {"attempt_id": "a1"},
        {**READABLE, "id": ""},
        {**READABLE, "id": None},
        {**READABLE, "id": ["t1"]},
        {**READABLE, "id": True},
        {**READABLE, "id": ".."},
        {**READABLE, "id": "a\nb"},
        {**READABLE, "id": "\ud800"},
        {**READABLE, "id": "x" * 256},
        {**READABLE, "attempt_id": ""},
        {**READABLE, "attempt_id": None},
    ],
)
def test_what_could_never_be_reported_is_dropped_and_said(entry: object) -> None:
    tasks, said = read_and_say(entry, {**READABLE, "id": "good"})
    assert [task.id for task in tasks] == ["good"]
    assert said == ["dropped a task without a usable id and attempt_id"]


def test_an_id_that_is_a_number_is_its_text() -> None:
    assert one(id=42, attempt_id=7).key == ("42", "7")


def test_a_task_of_another_agent_is_dropped() -> None:
    theirs = {**READABLE, "id": "theirs", "assigned_agent_id": "agent-2"}
    ours = {**READABLE, "assigned_agent_id": "agent-1"}
    tasks, said = read_and_say(theirs, ours)
    assert [task.id for task in tasks] == ["t1"]
    assert said == ["dropped a task that is another agent's"]


def test_the_same_attempt_twice_in_one_answer_is_one_task() -> None:
    assert [task.command for task in read(READABLE, {**READABLE, "command": "false"})] == ["true"]
    assert len(read(READABLE, {**READABLE, "attempt_id": "a2"})) == 2


@pytest.mark.parametrize("zero", [0, None, "", 0.0, "0", -3])
def test_zero_times_mean_the_defaults(zero: object) -> None:
    task = one(timeout=zero, retry_delay=zero)
    assert (task.timeout, task.retry_delay) == (3600, 60)


@pytest.mark.parametrize(
    ("sent", "read_as"), [(0, 5), (None, 5), (1, 1), (10, 10), (99, 10), (-1, 1), ("3", 3)]
)
def test_a_priority_is_1_to_10_and_0_means_5(sent: object, read_as: int) -> None:
    assert one(priority=sent).priority == read_as


@pytest.mark.parametrize("sent", [None, "", "0001-01-01T00:00:00Z", "yesterday", 5, [], {}])
def test_a_time_that_is_none_or_no_time_is_now(sent: object) -> None:
    assert abs(one(created_at=sent).created_at - CLOCK.wall()) < 60


@pytest.mark.parametrize(
    "sent",
    [
        "2026-01-31T20:00:00+08:00",
        "2026-01-31T12:00:00.000000000Z",
        "2026-01-31T20:00:00.0+08:00",
    ],
)
def test_times_of_other_zones_and_precisions_are_the_same_moment(sent: str) -> None:
    assert one(created_at=sent).created_at == 1769860800.0


def test_an_unknown_type_keeps_its_text() -> None:
    assert one(type="training").type == "training"
    assert one(type=None).type == "shell"


def test_unknown_fields_are_kept_and_the_record_of_earlier_attempts_is_not() -> None:
    task = one(
        customer_id=3,
        image={"name": "x"},
        machine_id="m",
        parent_id="p",
        depends_on=["q"],
        exit_code=1,
        stdout="old",
        status="assigned",
        error_msg="old",
    )
    assert task.extra == {"customer_id": 3, "image": {"name": "x"}}
    assert task.depends_on == ()  # a server resolves its own


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({}, Resources()),
        (None, Resources()),
        ("", Resources()),
        ('{"gpus": 2}', Resources(gpus=2)),
        (
            {"gpus": 2, "gpu": "a100", "gpu_memory": "20GiB", "cpus": 1.5, "memory": 1024},
            Resources(gpus=2, gpu="a100", gpu_memory=20 * 2**30, cpus=1.5, memory=1024),
        ),
    ],
)
def test_what_a_task_asks_of_a_machine_is_read(given: object, read: Resources) -> None:
    assert one(resources=given).resources == read


def test_who_submitted_it_and_where_it_may_run_is_read() -> None:
    task = one(user="ann", labels={"zone": "a", "rack": 7}, executor="bubblewrap")
    assert (task.user, task.wanted_executor) == ("ann", "bubblewrap")
    assert task.labels == {"zone": "a", "rack": "7"}
    assert task.extra == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("resources", {"gpus": "many"}),
        ("resources", {"tpus": 1}),
        ("resources", [1]),
        ("resources", "lots"),
        ("labels", ["zone"]),
        ("labels", {"zone": {}}),
        ("executor", {}),
        ("user", []),
    ],
)
def test_a_need_that_cannot_be_read_refuses_the_task_and_names_it(
    field: str, value: object
) -> None:
    """To run it without what it asked for would be worse."""
    assert one(**{field: value}).unreadable.startswith(field)


def test_unknown_fields_that_no_encoding_can_hold_are_left_out() -> None:
    assert one(note="\ud800").extra == {}


def test_the_answers_order_is_arbitrary_so_tasks_are_sorted() -> None:
    def entry(name: str, priority: int, second: int) -> dict[str, object]:
        created = f"2026-01-01T00:00:{second:02}Z"
        return {**READABLE, "id": name, "priority": priority, "created_at": created}

    tasks = read(entry("c", 0, 2), entry("b", 5, 1), entry("d", 9, 0), entry("a", 1, 9))
    assert [task.id for task in tasks] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("entries", [None, 5, "text", {"id": 1}, True])
def test_tasks_that_are_no_list_are_no_tasks(entries: object) -> None:
    log = structlog.wrap_logger(None, processors=[LogCapture()])
    assert read_tasks(entries, source="s", agent_id="a", lease=LEASE, clock=CLOCK, log=log) == []


TEXT = st.text(st.sampled_from('ab5é[]{}":,=\0\n \ud800\udfff'), max_size=5)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
FIELDS = [*READABLE, "name", "type", "args", "exec", "workdir", "env", "env_vars", "timeout",
          "priority", "retry_count", "max_retries", "retry_delay", "created_at", "status",
          "assigned_agent_id", "other"]  # fmt: skip


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.dictionaries(st.sampled_from(FIELDS), JSON), max_size=3))
def test_whatever_json_comes_is_read_or_refused_alone(entries: list[dict[str, Any]]) -> None:
    good = {**READABLE, "id": "good task"}
    tasks = read(*[READABLE | entry for entry in entries], good)
    assert "good task" in {task.id for task in tasks}
    for task in tasks:
        texts = [task.command, task.name, task.type, task.workdir, task.unreadable, *task.args]
        "".join([*texts, *task.env, *task.env.values()]).encode()
        json.dumps(dict(task.extra), ensure_ascii=False).encode()
        assert 1 <= task.priority <= 10
        assert 0 < task.timeout <= 1e9
        assert 0 < task.retry_delay <= 1e9
        assert 0 <= task.retry_count <= 2**31


@pytest.mark.parametrize(
    ("sent", "read_as"),
    [
        ({"on_lost_contact": "stop", "disconnect_grace": 90}, 90.0),
        ({"on_lost_contact": "stop"}, 0.0),
        ({"on_lost_contact": "keep", "disconnect_grace": 90}, None),
        ({"disconnect_grace": 90}, None),
    ],
)
def test_only_a_task_that_must_not_overlap_has_a_time_to_stop_without_contact(
    sent: dict[str, Any], read_as: float | None
) -> None:
    task = one(**sent)
    assert task.lease
    assert task.lease.stop_after == read_as
    assert not task.extra.keys() & sent.keys()
