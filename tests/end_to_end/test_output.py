"""Scenario 5: a task prints far more than the limit, and memory stays flat."""

from tests.end_to_end.records import peak_memory
from tests.end_to_end.site import Site, wait_for

LIMIT = 2**20
FLOOD = 10**9
FLAT = 48 * 2**20  # bytes; the result itself is there a few times: as bytes, text and JSON


def test_scenario_5_a_gigabyte_of_output_is_cut_head_and_tail_kept_and_memory_is_flat(
    site: Site,
) -> None:
    site.start_server()
    agent = site.start_agent()
    site.wait(site.submit("echo warm"))
    [supervisor] = site.supervisors()
    before = {pid: peak_memory(pid) for pid in (agent.popen.pid, supervisor)}
    head, tail = "the very first line\n", "the very last line\n"

    task = site.wait(
        site.submit(f"echo {head.strip()}; head -c {FLOOD} /dev/zero; echo {tail.strip()}; exit 3")
    )

    assert (task["status"], task["exit_code"]) == ("failed", 3)
    printed = len(head) + FLOOD + len(tail)
    dropped = printed - LIMIT
    assert task["truncated"] == {"stdout": dropped, "stderr": 0}
    marker = f"\n...[truncated, {dropped} bytes dropped]\n"
    kept_head, found, kept_tail = task["stdout"].partition(marker)
    assert found == marker
    assert len(kept_head) + len(kept_tail) == LIMIT
    assert kept_head.startswith(head)
    assert kept_tail.endswith(tail)
    grown = {pid: peak_memory(pid) - was for pid, was in before.items()}
    assert all(growth < FLAT for growth in grown.values()), grown


def test_scenario_5_the_limit_is_the_sites_and_what_fits_is_whole(site: Site) -> None:
    site.start_server()
    site.start_agent(subprocess_executor__max_output_size=4096)
    fits = site.submit(
        "head -c 4096 /dev/zero | tr '\\0' f; head -c 4097 /dev/zero | tr '\\0' e >&2"
    )

    task = site.wait(fits)

    assert task["stdout"] == "f" * 4096
    assert task["truncated"] == {"stdout": 0, "stderr": 1}
    assert task["stderr"] == "e" * 2048 + "\n...[truncated, 1 bytes dropped]\n" + "e" * 2048
    output = site.root / "agent-one" / "output"
    wait_for(lambda: not any(output.iterdir()), "no file of the output is left over")
