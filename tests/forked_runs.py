"""A server that runs the training script in forks of itself.

A test can so run, kill and resume the script many times without importing torch each time. Started
by ``ForkedRuns`` in tests/helpers.py; requests and replies are lines of JSON.

A request holds ``arguments`` of the script, ``patch`` (code executed first), ``processes`` (ranks,
as torchrun would start them), and ``signal`` with ``at``: the signal that a run sends itself at
that event. Events are calls made by the project's own code, counted from the start of
``Engine.fit``: they do not depend on the speed of the machine, and lie within steps, writing and
validation. The reply holds ``codes`` (exit code of each process, negative for a signal),
``output`` and ``events``.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import traceback
from pathlib import Path

import train_multimodal_e2e
from training import run_folder
from training.engine import Engine
from utils.errors import run_script
from utils.files import write_text_atomically

PROJECT = str(Path(__file__).resolve().parents[1])


def write_summary(path: Path, history: list[dict[str, float]]) -> None:
    """Stands in for the curves and the report of a run."""
    write_text_atomically(path, f"{len(history)} epochs")


def count_events(request: dict, count_file: Path) -> None:
    """Count from the start of ``fit``, and send the signal when its event comes."""
    n_events, fit = 0, Engine.fit

    def on_event(frame, event, argument):
        nonlocal n_events
        if frame.f_code.co_filename.startswith(PROJECT):
            n_events += 1
            if n_events == request.get("at"):
                os.kill(os.getpid(), request["signal"])

    def counted(self):
        sys.setprofile(on_event)
        try:
            fit(self)
        finally:
            sys.setprofile(None)
            count_file.write_text(str(n_events))

    Engine.fit = counted


def run_child(request: dict, folder: Path, rank: int, port: int) -> None:
    """In the fork: never returns."""
    output = os.open(folder / f"output{rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 1
    try:
        if request.get("processes", 1) > 1:
            world = str(request["processes"])
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": world,
                "LOCAL_WORLD_SIZE": world,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "TORCHELASTIC_RUN_ID": "test",
            }
        # Curves and report take nine tenths of the time of so small a run; test_training.py has
        # them written.
        run_folder.draw_curves = write_summary
        run_folder.write_training_report = write_summary
        exec(request.get("patch", ""), {})
        count_events(request, folder / "events")
        sys.argv = ["train_multimodal_e2e.py", "--device", "cpu", *request["arguments"]]
        run_script(train_multimodal_e2e.main)
        code = 0
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve(request: dict) -> dict:
    with socket.socket() as probe, tempfile.TemporaryDirectory() as name:
        probe.bind(("127.0.0.1", 0))
        port, folder = probe.getsockname()[1], Path(name)
        probe.close()
        children = []
        for rank in range(request.get("processes", 1)):
            child = os.fork()
            if child == 0:
                run_child(request, folder, rank, port)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        events = folder / "events"
        return {
            "codes": codes,
            "events": int(events.read_text()) if events.exists() else 0,
            "output": "".join(
                (folder / f"output{rank}").read_text(errors="replace")
                for rank in range(len(children))
            ),
        }


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)
