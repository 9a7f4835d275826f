"""The config: what is right parses, what is wrong is one line that says where and what instead."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esmpi.config.reader import ConfigError, changed_keys, load_config, parse_config
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


def complaint(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
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
        ("eval.qqqq=1", r"eval\.qqqq: unknown key \(there is: divergence, every, num_samples, suites, temperature\)"),
        ("es.sigma.x=3", r"es\.sigma\.x: unknown key, did you mean sigma\?"),
        ("task.name=countdwn", r"task\.name: unknown task 'countdwn', did you mean countdown\?"),
        ("task.name=", r"task\.name: missing key \(there is: arc, .*countdown, .*gym:<name>"),
        # choices
        ("model.dtype=float16", r"model\.dtype: must be one of float32, bfloat16; got 'float16'"),
        ("model.dtype=[float32]", r"model\.dtype: must be one of float32, bfloat16; got \['float32'\]"),
        ("es.shaping=zscores", r"es\.shaping: must be one of zscore, centered_rank; got 'zscores'"),
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
        # values
        ("es.sigma=0", r"es\.sigma: wants 1e-12 <= sigma"),
        ("es.sigma=.nan", r"es\.sigma: wants 1e-12 <= sigma"),
        ("es.sigma=.inf", r"es\.sigma: wants 1e-12 <= sigma"),
        ("es.alpha=-1e-3", r"es\.alpha: wants 1e-12 <= alpha"),
        ("es.population_size=1", r"es\.population_size: wants 2 to 10 million, got 1"),
        ("es.generations=-1", r"es\.generations: wants 0 to 10\^9, got -1"),
        ("run.seed=-1", r"run\.seed: wants 0 <= seed"),
        ("run.seed=9223372036854775808", r"run\.seed: wants 0 <= seed < 2\^63"),
        ("run.name=a/b", r"run\.name: letters, digits .*'a/b'"),
        ("run.name=..", r"run\.name: '\.\.' is no name"),
        ("run.name=", r"run\.name: .*str.*None"),
        ("data.batch_size=0", r"data\.batch_size: at least 1, got 0"),
        ("data.mini_batch_size=0", r"data\.mini_batch_size: at least 1"),
        ("data.num_eval=0", r"data\.num_eval: at least 1"),
        ("engine.num_threads=0", r"engine\.num_threads: at least 1"),
        ("sampling.max_tokens=0", r"sampling\.max_tokens: at least 1"),
        ("sampling.temperature=-1", r"sampling\.temperature: wants 0 to 100"),
        ("sampling.top_p=0", r"sampling\.top_p: wants 0 < top_p"),
        ("sampling.top_p=0.9", r"sampling\.top_p: has no effect on greedy decoding"),
        ("eval.every=0", r"eval\.every: at least 1"),
        ("snapshot.every=0", r"snapshot\.every: at least 1, got 0"),
        ("snapshot.keep=0", r"snapshot\.keep: at least 1, got 0"),
        ("run.fork_from=runs/first", r"run\.fork_from: wants PATH@GENERATION, .*'runs/first'"),
        ("run.fork_from=runs/first@-1", r"run\.fork_from: wants PATH@GENERATION"),
        ("run.fork_from=@3", r"run\.fork_from: .*"),
        ("task.num_numbers=[1]", r"task\.num_numbers: "),
        ("task.operators=+^", r"task\.operators: wants some of '\+-\*/'"),
        ("task.target_range=[9, 3]", r"task\.target_range: wants 0 <= smallest <= largest"),
        # syntax
        ("es.sigma", r"'es\.sigma' is no override: write section\.key=value"),
        ("sigma=3", r"'sigma=3' is no override: write section\.key=value"),
        ("=3", r"'=3' is no override"),
        (".sigma=3", r"'\.sigma=3' is no override"),
        ("es.=3", r"'es\.=3' is no override"),
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

    assert changed_keys(resolved(), resolved()) == []
    changed = changed_keys(resolved("es.sigma=1e-3"), resolved("es.sigma=2e-3", "run.seed=4"))
    assert changed == ["es.alpha: 0.0005 -> 0.001", "es.sigma: 0.001 -> 0.002", "run.seed: 0 -> 4"]
    older = resolved()
    del older["es"]["shaping"], older["log"]["level"]
    assert changed_keys(older, resolved()) == ["es.shaping: None -> 'zscore'", "log.level: None -> 'info'"]


def test_configs_cannot_be_changed(config_file: Path) -> None:
    config: Config = load_config(config_file)
    with pytest.raises(AttributeError):
        config.es.sigma = 1.0  # type: ignore[misc]


def test_a_fork_names_a_run_and_a_generation(config_file: Path) -> None:
    assert load_config(config_file).run.fork is None
    assert load_config(config_file, ["run.fork_from=runs/a@b@12"]).run.fork == (Path("runs/a@b"), 12)
