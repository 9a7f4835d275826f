"""The card of an exported model: what hubs read of it, results with their intervals, and how to make it again."""

import re
from pathlib import Path

import pytest
from made_runs import make_run
from ruamel.yaml import YAML

from esmpi.config.reader import parse_config, read_tree
from esmpi.model.base_model import BaseModel
from esmpi.model.find import find_model
from esmpi.report.card import card_files, license_of
from esmpi.store.run_file import RunFile


@pytest.fixture
def base() -> BaseModel:
    folder = find_model("esmpi:tiny_countdown")
    assert folder is not None
    return BaseModel(folder)


def card_of(run: RunFile, generation: int, base: BaseModel, chosen: bool = False) -> str:
    card = card_files(run, generation, base, chosen)["README.md"]
    assert isinstance(card, str)
    return card


def test_a_card_says_what_was_learned_and_how_to_make_it_again(tmp_path: Path, base: BaseModel) -> None:
    run = make_run(tmp_path / "run", texts=["``` <script>"])
    run.attributes["config"]["task"]["operators"] = "```` +"
    run.attributes["suite_digests"] = {"kept": "abcd"}
    files = card_files(run, 12, base)
    assert isinstance(files["curve.png"], bytes)
    assert files["curve.png"].startswith(b"\x89PNG")
    card = card_of(run, 12, base)
    assert "![Fitness and held-out accuracy over generations](curve.png)" in card
    metadata = YAML(typ="safe").load(card.split("---")[1])
    assert metadata["license"] == "apache-2.0"
    assert "base_model" not in metadata, "it is no model of a hub"
    assert "is apache-2.0. Its terms apply" in card
    assert "| held-out | generation 0 | generation 12 |" in card
    assert "| accuracy | 20.0 % | 75.0 % |" in card
    assert "| 95 % interval | 8.1 to 41.6 % | 53.1 to 88.8 % |" in card
    assert "12 became better, 1 became worse: +55.0 points, 95 % interval +28.5 to +81.5" in card
    assert "| problems of suite kept, digest | abcd |" in card
    assert "arXiv:2509.24372" in card
    [config] = re.findall(r"^(`{5,})json\n(.*?)\n\1$", card, re.DOTALL | re.MULTILINE)
    (tmp_path / "config.yaml").write_text(config[1])
    again = parse_config(read_tree(tmp_path / "config.yaml"), ["task.operators=+"])
    assert again.es.population_size == run.attributes["config"]["es"]["population_size"]


def test_a_card_of_the_best_generation_warns_and_says_nothing_that_came_later(tmp_path: Path, base: BaseModel) -> None:
    run = make_run(tmp_path / "run", "model.path=org/base")
    card = card_of(run, 8, base, chosen=True)
    assert "Generation 8 was chosen as the best of 4 evaluations" in card
    assert "generation 12 |" not in card
    assert '\nbase_model: "org/base"\n' in card
    (tmp_path / "run" / "eval" / "g000008.held_out.jsonl").write_text("{}\n")
    assert "one by one" not in card_of(run, 8, base), "damaged completions are no reason to write no model"


def test_a_licence_is_read_from_the_card_of_the_base_and_its_file_is_kept(tmp_path: Path, base: BaseModel) -> None:
    assert license_of(tmp_path) == {}
    card = tmp_path / "README.md"
    card.write_text(
        "---\ntags:\n- x\nlicense: other\nlicense_name: 'some-terms'\nlicense_link: LICENSE\n---\nlicense: no\n"
    )
    assert license_of(tmp_path) == {"license": "other", "license_name": "some-terms", "license_link": "LICENSE"}
    for text in ("no metadata\nlicense: mit\n", "---\nlicense:\n- mit\n---\n", "---\nlicense: [mit]\n---\n", "---\n"):
        card.write_text(text)
        assert license_of(tmp_path) == {}, text
    for file in base.folder.iterdir():
        if file.name != "README.md":
            (tmp_path / file.name).symlink_to(file)
    (tmp_path / "LICENSE-other.txt").write_text("terms")
    files = card_files(make_run(tmp_path / "run"), 12, BaseModel(tmp_path))
    assert files["LICENSE-other.txt"] == b"terms"
    assert "names no licence" in str(files["README.md"])
