"""A new module in a room is a new plug-in: the config takes its name, and nothing else is edited."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, TINY_RUN

NEW = {
    "esmpi.es.shapings": (
        "sign_of_rank",
        "import numpy as np\n\ndef shape(fitness):\n    return np.sign(fitness - np.median(fitness))\n",
        "es.shaping=sign_of_rank",
    ),
    "esmpi.record.sinks": (
        "printed",
        "from esmpi.record.sinks.base import Sink\n\n"
        "class Printed(Sink):\n"
        "    def __init__(self, directory, attributes, first):\n        print('sink opened at', first)\n"
        "    def write(self, group, generation, figures):\n        print('sink', group, generation)\n"
        "    def close(self):\n        print('sink closed')\n",
        "log.sinks=[printed]",
    ),
    "esmpi.tasks": (
        "parrot",
        "from esmpi.config.sections import TaskConfig\n"
        "from esmpi.tasks.base import Score, Task\n\n"
        "class Parrot(Task):\n"
        "    name = 'parrot'\n    config_type = TaskConfig\n    default_sampling = {'max_tokens': 4}\n"
        "    def __init__(self, config):\n        pass\n"
        "    def prompt(self, example):\n        return example['text']\n"
        "    def score(self, completion, example):\n        return Score(reward=-len(completion), correct=False)\n"
        "    def check(self, example):\n        pass\n"
        "    def key(self, example):\n        return example['text']\n"
        "    def problems(self, part):\n        return [{'text': f'{i}+{part}'} for i in range(4)]\n",
        "task.name=parrot data.train=builtin data.eval=builtin data.num_train=4 data.num_eval=4 data.batch_size=2",
    ),
}


@pytest.mark.parametrize("room", NEW)
def test_a_new_file_is_a_new_plug_in(tmp_path: Path, room: str) -> None:
    name, source, overrides = NEW[room]
    (tmp_path / f"{name}.py").write_text(source)
    arguments = [str(TINY_RUN), f"run.output_dir={tmp_path}", "es.generations=1", "es.population_size=3"]
    arguments += ["data.num_eval=2", *overrides.split()]
    # as if the file lay in the room's own folder, also in the processes that score
    program = (
        f"import sys, {room}\n{room}.__spec__.submodule_search_locations.append({str(tmp_path)!r})\n"
        f"from esmpi import run\nif __name__ == '__main__':\n    sys.exit(run.main({arguments!r}))\n"
    )
    script = tmp_path / "program.py"
    script.write_text(program)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "generation 1/1" in done.stdout
    if room == "esmpi.record.sinks":
        assert [line for line in done.stdout.splitlines() if line.startswith("sink")] == [
            "sink opened at 0",
            "sink held_out 0",
            "sink generation 0",
            "sink held_out 1",
            "sink closed",
        ]
