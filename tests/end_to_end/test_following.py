"""Live logs: a running task's output through the server, from anywhere, to the last byte."""

import os
import random
import re
import signal
import subprocess

import pytest

from tests.end_to_end.site import PATIENCE, REMOTEGPU, Site

_PRINTS = """
import os, random, sys, time
draw = random.Random(7)
for _ in range(60):
    data = bytes(draw.randrange(256) for _ in range(draw.choice((1, 7, 300, 5000))))
    os.write(draw.choice((1, 2)), data)
    time.sleep(draw.choice((0, 0, 0.01, 0.05)))
"""


def printed() -> tuple[bytes, bytes]:
    """What that task prints."""
    draw = random.Random(7)
    streams = {1: bytearray(), 2: bytearray()}
    for _ in range(60):
        data = bytes(draw.randrange(256) for _ in range(draw.choice((1, 7, 300, 5000))))
        streams[draw.choice((1, 2))] += data
        draw.choice((0, 0, 0.01, 0.05))
    return bytes(streams[1]), bytes(streams[2])


class Follower:
    """`remotegpu` as somebody has it before their eyes."""

    def __init__(self, site: Site, *args: str) -> None:
        self.popen = subprocess.Popen(
            [REMOTEGPU, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, cwd=site.root,
            env={**os.environ, "REMOTEGPU_URL": site.url, "REMOTEGPU_TOKEN": site.user_token},
        )  # fmt: skip

    def line(self) -> bytes:
        """The next line of output, as soon as it comes."""
        assert self.popen.stdout is not None
        return self.popen.stdout.readline()

    def told(self) -> str:
        """The next remark."""
        assert self.popen.stderr is not None
        return self.popen.stderr.readline().decode()

    def rest(self) -> tuple[bytes, bytes]:
        return self.popen.communicate(timeout=PATIENCE)


@pytest.mark.timeout(180)
def test_output_comes_while_the_task_runs_and_through_all_that_may_happen(site: Site) -> None:
    """Ctrl-C and back at the same byte; a server that is killed and starts again."""
    site.start_server()
    site.start_agent().says("ready")
    first, second, third = (site.gate(name) for name in ("first", "second", "third"))
    text = "; ".join(
        f"echo line {n}; {gate.wait}" for n, gate in enumerate((first, second, third), 1)
    )
    following = Follower(site, "submit", "--follow", "-c", f"{text}; echo end; exit 7")
    task_id = following.told().split()[-1]
    assert following.line() == b"line 1\n"
    following.popen.send_signal(signal.SIGINT)
    _, remark = following.rest()
    assert following.popen.returncode == 130
    way_back = re.search(r"remotegpu (logs -f .*)", remark.decode())
    assert way_back is not None
    assert way_back[1] == f"logs -f {task_id} --run 1 --offset 7:0"

    back = Follower(site, *way_back[1].split())
    first.open()
    assert back.line() == b"line 2\n"
    assert site.server is not None
    site.server.kill()
    assert "still following" in back.told()
    second.open()
    site.start_server()
    assert "answers again" in back.told()
    assert back.line() == b"line 3\n"
    third.open()
    assert back.rest() == (b"end\n", b"")
    assert back.popen.returncode == 0
    assert site.wait(task_id)["exit_code"] == 7


@pytest.mark.timeout(180)
def test_whatever_bytes_a_task_prints_all_who_read_them_agree(site: Site) -> None:
    site.start_server()
    site.start_agent().says("ready")
    following = Follower(site, "submit", "--follow", "--type", "python", "-c", _PRINTS)
    task_id = following.told().split()[-1]
    out, err = following.rest()
    assert following.popen.returncode == 0
    wanted = printed()
    remark = f"remotegpu: {task_id} completed, exit code 0\n".encode()
    assert (out, err) == (wanted[0], wanted[1] + remark)
    later = Follower(site, "logs", task_id)
    assert later.rest() == wanted
    seen = site.task(task_id)
    assert (seen["stdout"], seen["stderr"]) == tuple(
        data.decode(errors="replace").replace("\0", "\ufffd") for data in wanted
    )
