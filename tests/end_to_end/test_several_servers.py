"""Scenario 13 with several servers on one PostgreSQL database, one of which is killed."""

import contextlib
import random
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.end_to_end.relay import Relay
from tests.end_to_end.site import Process, Site, free_port, wait_for
from tests.postgres import Cluster

pytestmark = pytest.mark.engines

AGENTS = 8
SLOTS = 12  # one or two each
SERVERS = 3
TASKS = 200
# A lease outlives the test: whatever is granted anew was lost, not merely late.
LEASES = {"lease_sec": 300, "disconnect_grace": 300}


@contextlib.contextmanager
def _servers(site: Site) -> Iterator[list[tuple[Process, int]]]:
    """Processes and ports; the site's own is the last, so users keep theirs."""
    first, made = site.port, []
    for number in range(SERVERS - 1):
        site.port = free_port()
        site.url = f"http://127.0.0.1:{site.port}"
        log = site.root / "server.log"
        made.append((site.start_server(**LEASES), site.port))
        log.rename(site.root / f"server-{number}.log")  # it writes there on, the next anew
    site.port, site.url = first, f"http://127.0.0.1:{first}"
    made.append((site.start_server(**LEASES), first))
    try:
        yield made
    finally:
        for process, _ in made:
            if process.alive:
                process.kill()


def _spread(site: Site, ports: list[int]) -> list[Relay]:
    """A relay for each agent, the servers in turn; started, each with one slot or two."""
    relays = []
    for number in range(AGENTS):
        relay = Relay(ports[number % len(ports)])
        site.relays.append(relay)
        relays.append(relay)
        site.start_agent(
            f"agent-{number}",
            server_client__url=relay.url,
            agent__max_workers=1 + number % 2,
        )
    return relays


def test_scenario_13_eight_agents_and_three_servers_of_which_one_is_killed(
    site: Site, postgres: Cluster
) -> None:
    with postgres.schema() as schema:
        site.database = postgres.url(schema)
        with _servers(site) as servers:
            victim, port = servers[0]
            ports = [each for _, each in servers]
            relays = _spread(site, ports)
            gate = site.gate()
            tasks = [site.submit_marked(gate.wait) for _ in range(SLOTS)]
            tasks += [site.submit_marked("sleep 0.1") for _ in range(TASKS - len(tasks))]
            wait_for(lambda: len(site.marks("begin")) == SLOTS, "every slot of every agent is full")
            gate.open()
            wait_for(lambda: len(site.marks("end")) > TASKS // 4, "a quarter has run")

            victim.kill()

            left = [site.task(task_id)["status"] for task_id in tasks]
            assert left.count("completed") < TASKS, "it was killed in the middle"
            for relay in relays:
                if relay.server_port == port:
                    relay.turn(random.choice(ports[1:]))

            ended = [site.wait(task_id) for task_id in tasks]

            assert Counter(task["status"] for task in ended) == {"completed": TASKS}
            assert Counter(len(task["runs"]) for task in ended) == {1: TASKS}
            for what in ("begin", "end"):
                assert sorted(mark.task_id for mark in site.marks(what)) == sorted(tasks), what
            # Some answers to claims died with the server; what they granted is asked for again.
            attempts = "SELECT task_id, count(*) FROM attempts GROUP BY task_id"
            granted = {row[0]: row[1] for row in postgres.query(attempts, schema=schema)}
            assert granted == dict.fromkeys(tasks, 1)
            for name, agent in site.agents.items():
                assert agent.alive, agent.text
                assert site.file(name).dead_letters() == []
                wait_for(lambda name=name: site.file(name).unsent() == [], f"{name} told all")
            for agent in site.agents.values():
                assert agent.stop() == 0
