"""The config: what is right parses, what is wrong is one line that says where and what instead."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esmpi.config.differences import differences
from esmpi.config.reader import ConfigError, load_config, parse_config
from esmpi.config.sections import Config
from esmpi.errors import UserError

GOOD = """\
run: {name: try}
model: {path: some/model}
es: {generations: 3}
task: {name: countdown}
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "try.yaml"
    path.write_text(GOOD)
    return path


def complaint(path: Path, *overrides: str | Mapping[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides[0] if overrides and isinstance(overrides[0], Mapping) else overrides)  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_minimal_config_has_the_documented_defaults(config_file: Path) -> None:
    config = load_config(config_file)
    assert config.run.output_dir == "runs"
    assert config.directory == Path("runs/try")
    assert config.es.population_size == 30
    assert config.es.sigma == 1e-3
    assert config.es.step_size == 5e-4
    assert config.es.shaping == "zscore"
    assert config.es.antithetic is False
    assert config.sampling.temperature == 0
    assert config.sampling.max_tokens == 1024
    assert config.data.batch_size == 200
    assert config.run.seed == 0
    assert (config.data.num_train, config.data.num_eval) == (1000, 400)


def test_numbers_as_people_write_them(config_file: Path) -> None:
    """PyYAML reads 1e-3 as text; YAML 1.2 does not."""
    for text, value in (("1e-3", 1e-3), ("1E-3", 1e-3), ("2.5e-2", 0.025), ("1", 1.0), (".5", 0.5)):
        assert load_config(config_file, [f"es.sigma={text}"]).es.sigma == value
    config_file.write_text(GOOD.replace("generations: 3", "generations: 3, sigma: 1e-3, alpha: 6e-3"))
    config = load_config(config_file)
    assert (config.es.sigma, config.es.step_size) == (1e-3, 6e-3)


def test_overrides_win_and_the_last_one_most(config_file: Path) -> None:
    config = load_config(
        config_file,
        ["es.sigma=2e-3", "es.generations=7", "es.generations=8", "task.num_numbers=[3]", "run.output_dir=/a b=c/d"],
    )
    assert config.es.sigma == 2e-3
    assert config.es.generations == 8
    assert config.task.num_numbers == (3,)  # type: ignore[attr-defined]
    assert config.run.output_dir == "/a b=c/d"


def test_an_empty_section_has_its_defaults(config_file: Path) -> None:
    config_file.write_text(GOOD + "sampling:\nlog: {}\n")
    assert load_config(config_file) == load_config(config_file, ["sampling.top_p=1"])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        # unknown names, with the nearest one
        ("ess.sigma=1", r"ess: unknown section, did you mean es\?"),
        ("es.sgima=1", r"es\.sgima: unknown key, did you mean sigma\?"),
        ("task.numbers_range=[1, 2]", r"task\.numbers_range: unknown key, did you mean number_range\?"),
        (
            "zzz.a=1",
            r"zzz: unknown section \(there is: data, engine, es, eval, .*, sampling, scoring, snapshot, task\)",
        ),
        (
            "eval.qqqq=1",
            r"eval\.qqqq: unknown key \(there is: control_every, divergence, every, .*, suites, temperature\)",
        ),
        ("es.sigma.x=3", r"es\.sigma\.x: unknown key, did you mean sigma\?"),
        ("task.name=countdwn", r"task\.name: unknown task 'countdwn', did you mean countdown\?"),
        ("task.name=", r"task\.name: must be a name, got null \(there is: arc, .*countdown, .*gym:<name>"),
        # choices
        ("model.dtype=float64", r"model\.dtype: must be one of float32, bfloat16, float16; got 'float64'"),
        ("model.dtype=[float32]", r"model\.dtype: must be one of float32, bfloat16, float16; got \['float32'\]"),
        (
            "es.shaping=zscores",
            r"es\.shaping: must be one of centered_rank, log_rank, per_prompt, raw, top_k, zscore; got 'zscores'",
        ),
        ("es.dispatch=dynamc", r"es\.dispatch: must be one of static, dynamic; got 'dynamc'"),
        ("data.order=epoch", r"data\.order: must be one of fixed, random, epochs; got 'epoch'"),
        ("engine.device=tpu", r"engine\.device: must be one of auto, cpu, cuda; got 'tpu'"),
        ("log.level=loud", r"log\.level: must be one of debug, info, warning, error; got 'loud'"),
        ("run.export_dtype=null", r"run\.export_dtype: must be one of float32, bfloat16, none; got None"),
        # types
        ("es.sigma=abc", r"es\.sigma: .*float.*'abc'"),
        ("es.sigma=", r"es\.sigma: .*float.*None"),
        ("es.sigma='1e-3'", r"es\.sigma: .*float.*'1e-3'"),
        ("es.population_size=2.5", r"es\.population_size: .*int.*2\.5"),
        ("es.population_size=true", r"es\.population_size: .*int.*True"),
        ("es.antithetic=1", r"es\.antithetic: .*bool.*1"),
        ("es.antithetic=yes", r"es\.antithetic: .*bool.*'yes'"),
        ("run.name=7", r"run\.name: .*str.*7"),
        ("run.name=2020-01-01", r"run\.name: .*str.*2020"),
        ("task.num_numbers=3", r"task\.num_numbers: .*array.*3"),
        ("task.number_range=[1]", r"task\.number_range: .*length 2.*\[1\]"),
        ("task.number_range=[1, a]", r"task\.number_range: .*int.*'a'"),
        ("es.exclude=*norm*", r"es\.exclude: must be a list: 'es\.exclude=\[\"\*norm\*\"\]'"),
        # values
        ("es.sigma=0", r"es\.sigma: must be at least 1e-12 and below 1,?000"),
        ("es.sigma=.nan", r"es\.sigma: must be at least 1e-12 and below 1,?000"),
        ("es.sigma=.inf", r"es\.sigma: must be at least 1e-12 and below 1,?000"),
        ("es.alpha=-1e-3", r"es\.alpha: must be at least 0 and below 1,?000"),
        ("es.population_size=1", r"es\.population_size: must be between 2 and 10,000,000, got 1"),
        ("es.generations=-1", r"es\.generations: must be between 0 and 1,000,000,000, got -1"),
        ("run.seed=-1", r"run\.seed: must be between 0 and [0-9,]+, got -1"),
        (
            "run.seed=9223372036854775808",
            r"run\.seed: must be between 0 and 9,223,[0-9,]+, got 9223372036854775808",
        ),
        ("run.name=a/b", r"run\.name: letters, digits .*'a/b'"),
        ("run.name=..", r"run\.name: '\.\.' cannot be the name of a directory"),
        (f"run.name={'x' * 201}", r"run\.name: must have at most 200 bytes, has 201"),
        ("run.name=", r"run\.name: .*str.*None"),
        ("data.batch_size=0", r"data\.batch_size: must be at least 1, got 0"),
        ("data.mini_batch_size=0", r"data\.mini_batch_size: must be at least 1"),
        ("data.num_eval=0", r"data\.num_eval: must be at least 1"),
        ("engine.num_threads=0", r"engine\.num_threads: must be between 1 and 4,096, got 0"),
        ("sampling.max_tokens=0", r"sampling\.max_tokens: must be at least 1"),
        ("sampling.temperature=-1", r"sampling\.temperature: must be between 0 and 100, got -1"),
        ("sampling.top_p=0", r"sampling\.top_p: must be above 0 and at most 1, got 0"),
        ("sampling.top_p=0.9", r"sampling\.top_p: has no effect on greedy decoding"),
        ("sampling.top_k=5", r"sampling\.top_k: has no effect on greedy decoding: set sampling\.temperature, too"),
        ("sampling.top_k=-1", r"sampling\.top_k: must be at least 0, got -1"),
        ("sampling.min_p=0.1", r"sampling\.min_p: has no effect on greedy decoding"),
        ("sampling.min_p=1.5", r"sampling\.min_p: must be between 0 and 1, got 1\.5"),
        ("sampling.repetition_penalty=0", r"sampling\.repetition_penalty: must be above 0 and at most 100, got 0"),
        ("sampling.presence_penalty=3", r"sampling\.presence_penalty: must be between -2 and 2, got 3"),
        ("sampling.frequency_penalty=-3", r"sampling\.frequency_penalty: must be between -2 and 2, got -3"),
        ("sampling.min_tokens=1025", r"sampling\.min_tokens: 1025 is more than max_tokens: 1024; lower it, or raise"),
        ("sampling.stop=['']", r"sampling\.stop: an empty text would end every completion at once"),
        ("sampling.stop=</answer>", r"sampling\.stop: must be a list: '.*=\[\"</answer>\"\]'"),
        ("sampling.bad_words=[' ']", r"sampling\.bad_words: a text without letters or signs cannot be forbidden"),
        ("sampling.include_stop=true", r"sampling\.include_stop: has no effect without sampling\.stop"),
        ("eval.every=0", r"eval\.every: must be at least 1"),
        ("snapshot.every=0", r"snapshot\.every: must be at least 1, got 0"),
        ("snapshot.keep=0", r"snapshot\.keep: must be at least 1, got 0"),
        ("run.fork_from=runs/first", r"run\.fork_from: must be PATH@GENERATION, .*'runs/first'"),
        ("run.fork_from=runs/first@-1", r"run\.fork_from: must be PATH@GENERATION"),
        ("run.fork_from=@3", r"run\.fork_from: .*"),
        ("task.num_numbers=[1]", r"task\.num_numbers: "),
        ("task.operators=+^", r"task\.operators: must be some of '\+-\*/'"),
        ("task.target_range=[9, 3]", r"task\.target_range: must be 0 <= smallest <= largest"),
        # syntax
        ("es.sigma", r"'es\.sigma' is not an override: write section\.key=value"),
        ("sigma=3", r"'sigma=3' is not an override: write section\.key=value"),
        ("=3", r"'=3' is not an override"),
        (".sigma=3", r"'\.sigma=3' is not an override"),
        ("es.=3", r"'es\.=3' is not an override"),
        # what YAML itself chokes on
        ("task.name=[countdown]", r"task\.name: "),
        ("task.name={a: b}", r"task\.name: "),
        ("es.sigma=!!python/object:os.system x", r"es\.sigma: "),
        ("es.sigma=!!int x", r"es\.sigma: |not valid YAML"),
    ],
)
def test_bad_overrides(config_file: Path, override: str, expected: str) -> None:
    assert re.match(expected, complaint(config_file, override))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", r"a config is a mapping of sections: run, model"),
        ("- 1\n", r"a config is a mapping of sections"),
        (GOOD + "es: {sigma: 1}\n", r"not valid YAML: .*duplicate key \"es\".*line 5"),
        (GOOD + "eval: {every: 3, every: 4}\n", r"not valid YAML: .*duplicate key \"every\".*line 5"),
        (GOOD + "eval: {every: 3\n", r"not valid YAML: .*line 5"),
        (GOOD + "\teval: 3\n", r"not valid YAML: .*line 5"),
        (GOOD + "sampling: 3\n", r"^sampling: must be a section with keys of its own, got 3"),
        (GOOD + "1: 2\n", r"^1: unknown section"),
        (GOOD + "eval: {1: 2}\n", r"^eval\.1: unknown key"),
        (GOOD + "---\na: 1\n", r"not valid YAML: .*single document"),
        (GOOD.replace("generations: 3", "sigma: 1"), r"^es\.generations: missing; it has no default"),
        (GOOD.replace("name: try", "seed: 1"), r"^run\.name: missing"),
        (GOOD.replace("model: {path: some/model}\n", ""), r"^model\.path: missing"),
        (
            GOOD.replace("task: {name: countdown}\n", ""),
            r"^task\.name: missing key \(there is: arc, .*countdown, .*gym:<name>",
        ),
        (GOOD + "es2: {antithetic: true}\n", r"^es2: unknown section, did you mean es\?"),
        (GOOD + "eval: {every: 2020-99-99}\n", r"not valid YAML|eval\.every"),
    ],
)
def test_bad_files(config_file: Path, text: str, expected: str) -> None:
    config_file.write_text(text)
    assert re.search(expected, complaint(config_file))


def test_antithetic_needs_an_even_population(config_file: Path) -> None:
    text = complaint(config_file, "es.antithetic=true", "es.population_size=31")
    assert text == "es.population_size: antithetic pairs need an even number, got 31"
    assert load_config(config_file, ["es.antithetic=true", "es.population_size=32"]).es.antithetic


def test_missing_file_names_the_nearest(config_file: Path) -> None:
    wrong = config_file.with_name("tri.yaml")
    assert complaint(wrong) == f"cannot read config {wrong}: No such file or directory, did you mean {config_file}?"
    assert "Is a directory" in complaint(config_file.parent)
    config_file.write_bytes(b"run: \xff\xfe")
    assert "not valid YAML" in complaint(config_file)
    assert issubclass(ConfigError, UserError)  # which the commands print as one line


def test_resolved_yaml_is_the_same_config(config_file: Path) -> None:
    config = load_config(config_file, ["es.sigma=1e-3", "es.alpha=1e-9", "task.num_numbers=[3, 5]", "eval.every=3"])
    config_file.write_text(config.to_yaml())
    assert load_config(config_file) == config
    assert parse_config(config.to_dict()) == config


@settings(max_examples=60)
@given(
    st.from_regex(r"[\w.+=,-]+", fullmatch=True).filter(lambda name: name not in (".", "..")),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20),
    st.floats(1e-11, 999),
    st.integers(0, 2**63 - 1),
)
def test_resolved_yaml_keeps_any_value(
    tmp_path_factory: pytest.TempPathFactory, name: str, folder: str, sigma: float, seed: int
) -> None:
    tree = {
        "run": {"name": name, "output_dir": folder, "seed": seed},
        "model": {"path": folder},
        "es": {"generations": 3, "sigma": sigma},
        "task": {"name": "countdown"},
    }
    config = parse_config(tree)
    path = tmp_path_factory.getbasetemp() / "resolved.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(path) == config


def test_changed_keys_name_both_values(config_file: Path) -> None:
    def resolved(*overrides: str) -> dict:
        return load_config(config_file, overrides).to_dict()

    assert not list(differences(resolved(), resolved()))
    changed = differences(resolved("es.sigma=1e-3"), resolved("es.sigma=2e-3", "run.seed=4"))
    assert [str(one) for one in changed] == [
        "es.alpha: 0.0005 -> 0.001",
        "es.sigma: 0.001 -> 0.002",
        "run.seed: 0 -> 4",
    ]


def test_a_key_that_an_older_esmpi_lacked_has_its_default(config_file: Path) -> None:
    older, config = (load_config(config_file).to_dict() for _ in range(2))
    del older["es"]["shaping"], older["log"]["sinks"], older["task"]["num_numbers"]
    assert not list(differences(older, config))
    config["es"]["shaping"] = "centered_rank"
    assert [str(one) for one in differences(older, config)] == ["es.shaping: 'zscore' -> 'centered_rank'"]


CHANGED = {
    "run.name": "no",
    "run.seed": "yes",
    "run.profile": "no",
    "model.path": "by_digest",
    "model.dtype": "yes",
    "engine.num_threads": "no",
    "es.sigma": "yes",
    "es.generations": "no",
    "es.dispatch": "no",
    "task.num_numbers": "yes",
    "data.train": "by_digest",
    "data.mini_batch_size": "no",
    "sampling.top_p": "yes",
    "scoring.failure_reward": "yes",
    "scoring.time_limit_s": "no",
    "eval.every": "no",
    "eval.num_samples": "yes",
    "snapshot.every": "no",
    "log.level": "no",
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_key_says_whether_it_changes_the_result(config_file: Path, name: str) -> None:
    before, after = (load_config(config_file).to_dict() for _ in range(2))
    section, _, key = name.partition(".")
    after[section][key] = "another value"
    [found] = differences(before, after)
    assert (found.name, found.changes_result) == (name, CHANGED[name])
    assert found.matters == (CHANGED[name] == "yes")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "task.chat_template_kwargs={enable_thinking: false}",
            r"task\.chat_template_kwargs: are for the model's own chat template: set task\.chat_format=model, too",
        ),
        ("task.chat_template_kwargs={messages: []}", r"task\.chat_template_kwargs: messages: esmpi sets this itself"),
        ("task.chat_template_kwargs=[a]", r"task\.chat_template_kwargs: .*object.*\['a'\]"),
    ],
)
def test_variables_for_a_chat_template(config_file: Path, override: str, expected: str) -> None:
    form = "chatml" if "thinking" in override else "model"
    assert re.search(expected, complaint(config_file, "task.name=gsm8k", f"task.chat_format={form}", override))
    config = load_config(
        config_file,
        ["task.name=gsm8k", "task.chat_format=model", "task.chat_template_kwargs={enable_thinking: false, a: [1]}"],
    )
    assert config.task.chat_template_kwargs == {"enable_thinking": False, "a": [1]}  # type: ignore[attr-defined]
    assert "is only for task.name: " in complaint(config_file, "task.chat_template_kwargs={enable_thinking: false}")


def test_a_key_that_nobody_knows_changes_the_result(config_file: Path) -> None:
    before, after = (load_config(config_file).to_dict() for _ in range(2))
    after["es"]["later"] = 1
    [found] = differences(before, after)
    assert found.matters


def test_an_override_of_the_engine_drops_the_keys_of_the_other_one(tmp_path: Path) -> None:
    path = tmp_path / "vllm.yaml"
    path.write_text(
        "run: {name: x}\nmodel: {path: m}\nes: {generations: 1}\ntask: {name: countdown}\n"
        "engine: {kind: vllm, num_threads: 2, max_model_len: 1024, prefix_caching: true}\n"
    )
    notes: list[str] = []
    engine = load_config(path, ["engine.kind=hf"], notes).engine
    assert (engine.kind, engine.num_threads) == ("hf", 2)
    assert not hasattr(engine, "max_model_len")
    assert notes == [
        "engine.kind=hf does not use these keys of the config: engine.max_model_len, engine.prefix_caching"
    ]
    notes.clear()
    # what is said on the same command line is an error, and so is a file that does not agree with itself
    with pytest.raises(
        ConfigError, match=r"engine\.max_num_seqs: is only for engine\.kind: vllm\. Remove the key, or set"
    ):
        load_config(path, ["engine.kind=hf", "engine.max_num_seqs=8"])
    path.write_text(path.read_text().replace("kind: vllm, ", ""))
    with pytest.raises(ConfigError, match=r"engine\.max_model_len: is only for engine\.kind: vllm"):
        load_config(path)
    # run files of older versions have every engine's keys, at their defaults
    path.write_text(path.read_text().replace("max_model_len: 1024, prefix_caching: true", "max_model_len: null"))
    assert load_config(path, notes=notes).engine.kind == "hf"
    assert notes == []


def test_different_engines_are_compared_by_what_all_engines_have(config_file: Path) -> None:
    vllm = load_config(config_file, ["engine.kind=vllm", "engine.max_model_len=64"]).to_dict()
    hf = load_config(config_file, ["engine.num_threads=2"]).to_dict()
    vllm["engine"]["loudness"] = 3  # of an engine in a file that is not here any more
    assert [str(one) for one in differences(vllm, hf)] == [
        "engine.kind: 'vllm' -> 'hf'",
        "engine.num_threads: None -> 2",
    ]


def test_values_from_python_become_plain_ones(config_file: Path) -> None:
    sections = {
        "es": MappingProxyType({"sigma": np.float64(0.5), "population_size": np.int32(6), "antithetic": np.True_}),
        "task": {"num_numbers": np.array([3, 4]), "number_range": (1, 9)},
        "run": {"output_dir": Path("a b")},
        "data": {"columns": MappingProxyType({"target": "to\nal\x85"})},
    }
    config = load_config(config_file, sections)
    assert (config.es.sigma, config.es.population_size, config.es.antithetic) == (0.5, 6, True)
    assert config.task.num_numbers == (3, 4)  # type: ignore[attr-defined]
    assert config.run.output_dir == "a b"
    assert config.data.columns == {"target": "to\nal\x85"}
    assert complaint(config_file, {"es": {"sigma": float("nan")}}).startswith("es.sigma: must be at least 1e-12")
    with pytest.raises(TypeError, match=r"data\.columns\.a: a config has no values of type set"):
        load_config(config_file, {"data": {"columns": {"a": {1}}}})


def test_configs_cannot_be_changed(config_file: Path) -> None:
    config: Config = load_config(config_file)
    with pytest.raises(AttributeError):
        config.es.sigma = 1.0  # type: ignore[misc]


def test_a_fork_names_a_run_and_a_generation(config_file: Path) -> None:
    assert load_config(config_file).run.fork is None
    assert load_config(config_file, ["run.fork_from=runs/a@b@12"]).run.fork == (Path("runs/a@b"), 12)
